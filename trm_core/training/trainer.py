"""The training loop of one process among others: data in, checkpoints and metrics out.

One step: an exchange of a few numbers with the other processes -> new samples into halted rows -> one forward with the
whole loss (`StepLoss`) -> backward, clip, update -> one decision per row (`Episodes`). Evaluation is handed in as a
function, so that the loop does not know how it is done.
"""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trm_core.config.schema import Config
from trm_core.data.store import CapsuleFile
from trm_core.data.stream import CapsuleBatch, SampleStream, sequential_batches
from trm_core.distributed.collectives import all_sum, from_first_rank, rank, world_size
from trm_core.dqn.curiosity import Curiosity
from trm_core.dqn.learner import (
    ReplayedTargets,
    RewardDivisors,
    TargetNetwork,
    no_transitions,
    sequence_targets,
    td_targets,
)
from trm_core.dqn.replay import ReplayBuffer
from trm_core.dqn.schedules import beta_at
from trm_core.errors import CheckpointError, ResourceError
from trm_core.keyed_random import Purpose
from trm_core.losses import StepLoss, StepResult, joined
from trm_core.model.carry import Carry
from trm_core.model.rows import take_rows
from trm_core.model.trm import TinyRecursiveModel
from trm_core.optim.build import build_optimizers
from trm_core.optim.ema import WeightAverage
from trm_core.optim.schedule import lr_factor
from trm_core.training import checkpoint_folders as checkpoints
from trm_core.training import measure
from trm_core.training.agreement import Standing, exchange, require_alike
from trm_core.training.checkpoint import Checkpoint, load_shared
from trm_core.training.episodes import Decision, Episodes
from trm_core.training.faults import NotFinite
from trm_core.training.features import Features
from trm_core.training.gradient_monitor import GradientMonitor
from trm_core.training.loggers import MetricsLogger
from trm_core.training.metrics import Averages
from trm_core.training.regroup import regrouped
from trm_core.training.saving import Saver
from trm_core.training.state import TrainingState
from trm_core.training.stopping import StopFlag, reason_name
from trm_core.training.upkeep import keep_up

_SCALE_ROWS = 2048  # rows that the input scale is taken from
_ALIKE_INTERVAL = 100  # steps between two checks that the processes are alike

# Gives nothing when it was asked to stop.
Evaluate = Callable[[TinyRecursiveModel], dict[str, float]]


@dataclass(frozen=True)
class Hooks:
    """What the loop tells its caller. `evaluate` gets the model with the weights that count, on rank 0."""

    evaluate: Evaluate | None = None
    on_step: Callable[[int, dict[str, float]], None] = lambda step, values: None
    log: Callable[[str], None] = lambda message: None


class Trainer:
    """Built from a resolved config and open files; `run` trains to total_steps or until asked to stop.

    Every process holds `global_batch_size / processes` rows; rank r those from r times that number on.
    """

    def __init__(
        self,
        config: Config,
        features: Features,
        files: list[tuple[CapsuleFile, float]],
        device: torch.device,
        run: Path | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        training, dqn = config.training, config.dqn
        self.config, self.features, self.device, self.run_path = config, features, device, run
        self.about = about or {}
        torch.manual_seed(training.seed)
        stream = SampleStream(files, "train", seed=training.seed, num_workers=config.data.num_workers)
        model = TinyRecursiveModel(config, features.shape, with_cmi=features.cmi)
        fit_input_scale(model, files, training.seed)
        model = model.to(device)
        # Files that are mixed agree on everything, prices included (`trm_core.prepare.prepare`).
        prices = torch.as_tensor(files[0][0].prices, dtype=torch.float32, device=device)
        replay = target = curiosity = None
        if features.dqn:
            replay = ReplayBuffer(dqn, model.q_head.state_width, model.q_head.num_actions, device)
            target = TargetNetwork(model.q_head, dqn)
        if features.curiosity:
            head = model.q_head
            curiosity = Curiosity(dqn, head.state_width - head.recurrent_width).to(device)
        self.rows = training.global_batch_size // world_size()
        self.episodes = Episodes(model, config, prices, replay, curiosity, rank() * self.rows)
        shapes = stream_like(files[0][0], self.rows).to(device)
        self.state = TrainingState(
            model=model,
            curiosity=curiosity,
            optimizers=build_optimizers(model, config, [] if curiosity is None else [curiosity]),
            average=None if training.ema_decay is None else WeightAverage(model, training.ema_decay),
            target=target,
            replay=replay,
            scale=self.episodes.scale,
            intrinsic_scale=self.episodes.intrinsic_scale,
            stream=stream,
            carry=self.episodes.initial_carry(shapes),
        )
        self.loss = StepLoss(model, config, curiosity)
        # What DDP makes of the loss, for the phase of training.
        self.learner: StepLoss | DistributedDataParallel | None = None
        self.policy_only = False
        self.gradients: GradientMonitor | None = None
        if training.monitor_gradients:
            optimizers = self.state.optimizers
            learners = dict(model.named_children())
            if curiosity is not None:
                learners["curiosity"] = curiosity.predictor
            parts = (optimizers.model_params, optimizers.policy_params)
            self.gradients = GradientMonitor(nn.ModuleDict(learners), parts)
        self.averages = Averages()
        self.best: float | None = None  # accuracy of the best evaluation
        self.best_before: float | None = None  # of the one before it, should it not be saved
        self.saver = None if run is None else Saver(run, training.keep_checkpoints)
        if rank():
            # Built from one seed, the processes are alike; dropout should not be.
            torch.manual_seed(training.seed + (rank() << 32))

    @property
    def notes(self) -> list[str]:
        """Choices made automatically, with their reasons."""
        return self.state.optimizers.notes

    def standing(self, stop: int = 0) -> Standing:
        """Where all ranks stand. `stop`: this one's reason to stop, or 0."""
        state = self.state
        can_replay = state.replay is not None and state.replay.num_ready(state.step) >= self.config.dqn.buffer_min_size
        saved = self.saver is not None and self.saver.finished
        return exchange(int(state.carry.halted.sum()), can_replay, stop, saved)

    def replayed(self, step: int, enough: bool) -> ReplayedTargets | None:
        """Transitions to learn Q from: none at all before there are enough; None without DQN."""
        state, dqn = self.state, self.config.dqn
        if state.replay is None or state.target is None:
            return None
        if not enough:
            return no_transitions(state.model.q_head.state_width, dqn.sequence_length, self.device)
        divisors = RewardDivisors(state.scale.value, state.intrinsic_scale.value / max(dqn.curiosity_weight, 1e-8))
        networks = (state.model.q_head, state.target.head)
        draws = self.episodes.draws(step, Purpose.REPLAY, dqn.batch_size)
        batch = state.replay.sample(draws, step, beta_at(self.config, step))
        if dqn.sequence_length == 1:
            return td_targets(*networks, batch, dqn.gamma, divisors)
        slots, alive = state.replay.sequences(batch.slot, dqn.sequence_length)
        weight = batch.weight.repeat_interleave(dqn.sequence_length)
        runs = replace(state.replay.read(slots.flatten()), weight=weight)
        return sequence_targets(*networks, runs, alive, dqn.gamma, divisors)

    def learn(self, policy_only: bool) -> StepLoss | DistributedDataParallel:
        """The loss as all ranks share its gradient. In the policy phase the predictor has none."""
        if self.learner is None or policy_only != self.policy_only:
            for parameter in self.state.optimizers.model_params:
                parameter.requires_grad_(not policy_only)
            self.learner = shared_by_ranks(self.loss) if world_size() > 1 else self.loss
            self.policy_only = policy_only
        return self.learner

    def step(self, standing: Standing) -> tuple[StepResult, Decision]:
        """One optimiser step. Raises NotFinite before anything is updated."""
        state, training, step = self.state, self.config.training, self.state.step
        kept = state.carry
        began = time.perf_counter()
        needed = int(state.carry.halted.sum())
        fresh = state.stream.take(needed, standing.rows_before, standing.rows_after).to(self.device)
        waited = time.perf_counter() - began
        state.carry = self.episodes.begin(state.carry, fresh, step)
        replayed = self.replayed(step, standing.can_replay)
        policy_only = training.predictor_steps is not None and step >= training.predictor_steps
        # Dropout belongs to learning: a finished predictor shows the policy the states that evaluation will show it.
        state.model.train(not policy_only)
        if step == training.predictor_steps and state.average is not None:
            # The policy has to learn from the states that it will meet: those of the averaged weights.
            state.average.copy_to(state.model)
        result = self.differentiate(replayed, policy_only)
        if bool(all_sum((~result.loss.isfinite()).float())):
            bad = [name for name, term in result.terms.items() if not bool(term.total.isfinite().all())]
            rows = ~result.output.logits.isfinite().flatten(1).all(1)
            raise NotFinite(f"the loss is not finite ({', '.join(bad) or 'the sum'})", kept, rows)
        if not standing.can_replay:
            # Its gradient is zero, but an optimiser that sees one begins to count, to decay and to remember.
            state.model.q_head.value_net.zero_grad()
        self.update(step, kept)
        if state.replay is not None and standing.can_replay and replayed is not None and result.td_error is not None:
            # Before the decision stores new states: their slots may be those of the transitions just replayed.
            self.reprioritise(state.replay, replayed, result.td_error)
        before = state.carry
        state.carry, decision = self.episodes.decide(before, result, step)
        upkeep = keep_up(state.model, self.config, before, result, decision, step)
        state.step = step + 1
        add = self.averages.add
        for pair in measure.every_step(before, state.carry, result, decision, upkeep):
            add(*pair)
        if state.replay is not None:
            for pair in measure.rewards(decision, self.config.dqn.curiosity_weight):
                add(*pair)
        if self.logs_at(state.step):
            learned = replayed if standing.can_replay else None
            for pair in measure.now(state, self.config, before, result, learned, decision):
                add(*pair)
        elapsed = torch.tensor(time.perf_counter() - began)
        add("train/data_time_share", torch.tensor(waited), elapsed)
        add("train/samples_per_sec", torch.tensor(float(training.global_batch_size)), elapsed)
        return result, decision

    def differentiate(self, replayed: ReplayedTargets | None, policy_only: bool) -> StepResult:
        """Forward and backward of the whole batch, part after part: the gradient is that of the mean over all examples
        of all parts and ranks, however many parts there are.
        """
        state, learner, count = self.state, self.learn(policy_only), self.config.training.accumulation_steps
        rows = self.rows // count
        results: list[StepResult] = []
        transitions = [None if replayed is None else replayed.without_rows()] * (count - 1) + [replayed]
        parts = [(take_rows(state.carry, slice(n * rows, (n + 1) * rows)), some) for n, some in enumerate(transitions)]
        # DDP takes the mean over ranks, so that each divides by a mean.
        weights = torch.stack([self.loss.weights(*part) for part in parts])
        divisors = all_sum(weights.sum(0)) / world_size()
        for number, part in enumerate(parts, start=1):
            with nullcontext() if number == count or isinstance(learner, StepLoss) else learner.no_sync():
                results.append(learner(*part, state.step, policy_only, divisors))
                if results[-1].loss.requires_grad:
                    results[-1].loss.backward()
        return joined(results)

    def logs_at(self, step: int) -> bool:
        """Whether a line of metrics is written after `step` steps."""
        return step % self.config.training.log_interval == 0 or step == self.config.training.total_steps

    def update(self, step: int, kept: Carry) -> None:
        """Clip, step every optimiser at its rate, and let averages and target follow. Raises NotFinite first."""
        state, training, optimizers = self.state, self.config.training, self.state.optimizers
        norms: tuple[Tensor, ...]
        if self.gradients is None:
            norms = optimizers.norms()
        else:
            measured = self.gradients.measure()
            norms = measured.totals
            self.averages.add_vector(measured.names, measured.values)
        if not bool(torch.stack(norms).isfinite().all()):
            raise NotFinite("the gradient is not finite", kept, torch.zeros_like(kept.halted))
        limits = (training.grad_clip_norm, self.config.dqn.grad_clip_norm)
        for part, norm, limit in zip(("", "policy_"), norms, limits, strict=True):
            self.averages.add_mean(f"train/{part}grad_norm", norm)
            self.averages.add_mean(f"train/{part}grad_clip_ratio", (norm > limit).float())
        optimizers.clip(norms, limits)
        warmup, least = training.lr_warmup_steps, training.lr_min_ratio
        # The model's cosine ends where its learning ends.
        optimizers.set_factors(
            state.faults.rate * lr_factor(step, warmup, training.predictor_steps or training.total_steps, least),
            state.faults.rate * lr_factor(step, warmup, training.total_steps, least),
        )
        weights = [*optimizers.model_params, *optimizers.policy_params]
        before = [p.detach().clone() for p in weights] if self.logs_at(step + 1) else None
        optimizers.step()
        if before is not None:
            self.averages.add_mean("train/update_ratio", update_ratio(before, weights))
        optimizers.zero_grad()
        if state.average is not None:
            state.average.update(state.model)
        if state.target is not None:
            state.target.follow(state.model.q_head, step + 1)

    def reprioritise(self, replay: ReplayBuffer, replayed: ReplayedTargets, td_error: Tensor) -> None:
        """Tell the buffer how wrong the values of the replayed transitions were, where it wants to know."""
        dqn = self.config.dqn
        if dqn.replay == "prioritized" or dqn.td_error_threshold > 0:
            alive = replayed.weight > 0
            replay.update_priorities(replayed.slot[alive], td_error[alive])

    def skip(self, fault: NotFinite, logger: MetricsLogger, log: Callable[[str], None]) -> bool:
        """Leave a step out that is not finite, or go back to the last checkpoint (True). Raises DivergedError to give
        up.
        """
        state, training, faults = self.state, self.config.training, self.state.faults
        state.optimizers.zero_grad()
        if state.model.memory is not None:
            state.model.memory.forget_pending()
        state.carry = replace(fault.carry, halted=fault.carry.halted | fault.rows)
        state.step += 1
        faults.skip()
        log(f"warning: step {state.step}: {fault.what}; skipped")
        if faults.in_a_row <= training.max_skipped_steps:
            return False
        self.conclude_save(log)
        if faults.rollbacks >= training.max_rollbacks:
            raise faults.diverged(state.step, fault.what, training, "training.max_rollbacks is reached")
        run = self.run_path
        if run is None or not from_first_rank(lambda: bool(checkpoints.list_checkpoints(run))):
            raise faults.diverged(state.step, fault.what, training, "there is no checkpoint to go back to")
        self.roll_back(logger, log)
        return True

    def roll_back(self, logger: MetricsLogger, log: Callable[[str], None]) -> None:
        """Go back to the newest checkpoint that verifies, on the data that follows now, at half the rate."""
        folder, notes = self.newest_checkpoint()
        state, onward, faults = self.state, self.state.stream.state_dict(), self.state.faults
        saved, more = self.load(folder)
        notes += more
        state.restore(saved)
        state.stream.load_state_dict(onward)
        state.faults = faults
        faults.roll_back()
        self.averages = Averages()
        logger.rewind(state.step)
        for note in [*notes, f"warning: back to {folder.name}, with {faults.rate:g} of the learning rates"]:
            log(note)

    def run(self, logger: MetricsLogger, stop: StopFlag, hooks: Hooks) -> str:
        """Train. Returns 'done', 'stopped' (state saved) or 'interrupted' (state saved)."""
        training = self.config.training
        began, first, taken = time.perf_counter(), self.state.step, 0
        outcome = "done"
        while self.state.step < training.total_steps:
            standing = self.standing(stop.reason)
            if standing.saved:
                self.conclude_save(hooks.log)
            if standing.stop:
                outcome = "interrupted" if standing.stop == signal.SIGINT else "stopped"
                hooks.log(f"{reason_name(standing.stop)}: saving at step {self.state.step} and stopping")
                break
            if training.stop_at_step is not None and first < training.stop_at_step <= self.state.step:
                outcome = "stopped"
                break
            taken += 1
            try:
                self.step(standing)
                self.state.faults.in_a_row = 0
            except NotFinite as fault:
                if self.skip(fault, logger, hooks.log):
                    continue
            step, healthy = self.state.step, self.state.faults.in_a_row == 0
            if world_size() > 1 and step % _ALIKE_INTERVAL == 0:
                require_alike(self.state.shared({}))
            if self.logs_at(step):
                values = {**self.averages.take(), **measure.numbers_now(self.state, self.config, self.device)}
                values |= self.state.faults.metrics()
                values["train/steps_per_sec"] = taken / max(time.perf_counter() - began, 1e-9)
                logger.log(step, values)
                hooks.on_step(step, values)
            # What is saved among faults may be their cause: it must not be what a rollback goes back to.
            due = healthy and step < training.total_steps
            if hooks.evaluate is not None and due and step % training.eval_interval == 0:
                self.evaluate(hooks.evaluate, logger, hooks.log)
            if due and step % training.checkpoint_interval == 0:
                self.start_save(hooks.log)
        self.save(hooks.log)
        return outcome

    def evaluate(self, evaluate: Evaluate, logger: MetricsLogger, log: Callable[[str], None]) -> None:
        """Evaluate with the weights that count, on rank 0; the best result so far is saved and kept."""
        state = self.state
        if state.average is not None:
            with state.average.applied_to(state.model):
                values = from_first_rank(lambda: evaluate(state.model))
        else:
            values = from_first_rank(lambda: evaluate(state.model))
        if not values:
            return
        logger.log(state.step, values)
        log(f"step {state.step}: accuracy {values['eval/accuracy']:.4f}, opened {values['eval/opened']:.2f}")
        if self.best is None or values["eval/accuracy"] > self.best:
            self.conclude_save(log)
            self.best_before, self.best = self.best, values["eval/accuracy"]
            self.start_save(log, best=True)

    def start_save(self, log: Callable[[str], None], *, best: bool = False) -> None:
        """Begin to save in the middle of a run, when the save before is over; once per step."""
        if self.saver is None or self.saver.step == self.state.step:
            return
        self.conclude_save(log)
        self.saver.start(self.to_checkpoint(), best=best)

    def conclude_save(self, log: Callable[[str], None]) -> None:
        """Wait for the save under way, if there is one. A full disk costs this checkpoint, not the run: older ones stay
        as they are.
        """
        if self.saver is None or self.saver.save is None:
            return
        best = self.saver.save.best
        try:
            self.saver.conclude()
        except ResourceError as error:
            log(f"warning: {error.message}; training goes on, the next save is tried as usual ({error.hint})")
            self.best = self.best_before if best else self.best

    def save(self, log: Callable[[str], None]) -> None:
        """Save now, and wait for it. Raises ResourceError when the disk does not take it."""
        if self.saver is None:
            return
        self.conclude_save(log)
        self.saver.start(self.to_checkpoint())
        self.saver.conclude()

    def to_checkpoint(self) -> Checkpoint:
        """Everything to go on from."""
        return self.state.to_checkpoint({**self.about, "best": self.best})

    def newest_checkpoint(self) -> tuple[Path, list[str]]:
        """The newest checkpoint that verifies, as rank 0 sees it, and what there is to say about it."""
        run = self.run_path
        assert run is not None

        def find() -> tuple[str, list[str]]:
            folder, notes = checkpoints.find_checkpoint(run)
            return str(folder), notes

        folder, notes = from_first_rank(find)
        return Path(folder), list(notes)

    def load(self, folder: Path) -> tuple[Checkpoint, list[str]]:
        """A verified checkpoint as this rank goes on with it, and what about it is not exact."""
        own, notes = regrouped(folder, rank(), world_size(), self.rows)
        return load_shared(folder, own), notes

    def resume(self) -> list[str]:
        """Go on from the newest checkpoint that verifies; returns what there is to say about it."""
        folder, notes = self.newest_checkpoint()
        run = self.run_path
        assert run is not None
        from_first_rank(lambda: checkpoints.drop_newer(run, folder))
        saved, inexact = self.load(folder)
        if saved.state.get("shape") != self.about.get("shape"):
            raise CheckpointError(
                f"{folder} was trained on data of another shape: {saved.state.get('shape')}, "
                f"now {self.about.get('shape')}",
                hint="resume with the data of the run",
            )
        best = saved.state.get("best")
        if not (best is None or isinstance(best, float)):
            raise CheckpointError(f"{folder}: its best accuracy is {best!r:.60}", hint="delete the folder")
        self.state.restore(saved)
        self.best = best
        return [*notes, f"resuming from {folder.name} (step {saved.step})", *inexact]


def shared_by_ranks(loss: StepLoss) -> DistributedDataParallel:
    """The loss whose gradient is the mean over ranks."""
    with warnings.catch_warnings():
        # The name that follows it is not in every version of torch that we support.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        # Buffers are updated alike everywhere, and those that are not are meant to be a rank's own.
        return DistributedDataParallel(loss, broadcast_buffers=False)


@torch.no_grad()
def update_ratio(before: list[Tensor], after: Sequence[Tensor]) -> Tensor:
    """Norm of the change of all weights over their norm."""
    change = torch._foreach_norm(torch._foreach_sub(list(after), before))
    return torch.stack(change).norm() / torch.stack(torch._foreach_norm(before)).norm().clamp(min=1e-12)


def stream_like(file: CapsuleFile, rows: int) -> CapsuleBatch:
    """A batch of `rows` training rows that only gives shapes."""
    batch = next(sequential_batches(file, "train", rows))
    # A batch larger than the split repeats rows; every row is replaced before it is used.
    return batch if len(batch) == rows else batch.select(torch.arange(rows) % len(batch))


def fit_input_scale(model: TinyRecursiveModel, files: list[tuple[CapsuleFile, float]], seed: int) -> None:
    """Standardise the input with a sample of the training rows, drawn as training draws them."""
    stream = SampleStream(files, "train", seed=seed)
    batch = stream.take(min(_SCALE_ROWS, sum(file.rows["train"] for file, _ in files)))
    stream.close()
    children = batch.children if model.data.num_children else None
    sketches = batch.sketches
    if batch.mask is not None:
        sketches = sketches[batch.mask]
        children = None if children is None else children[batch.mask]
    model.embedding.fit_scale(sketches, children)
