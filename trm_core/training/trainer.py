"""The training loop of one process: data in, checkpoints and metrics out.

One step: new samples into halted rows -> one forward with the whole loss (`StepLoss`) -> backward, clip, update -> one
decision per row (`Episodes`). Evaluation is handed in as a function, so that the loop does not know how it is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trm_core.config.schema import Config
from trm_core.data.store import CapsuleFile
from trm_core.data.stream import CapsuleBatch, SampleStream, sequential_batches
from trm_core.dqn.actions import Action
from trm_core.dqn.learner import ReplayedTargets, TargetNetwork, epsilon_at, td_targets
from trm_core.dqn.replay import ReplayBuffer
from trm_core.errors import CheckpointError, DivergedError
from trm_core.keyed_random import Purpose
from trm_core.losses import StepLoss, StepResult
from trm_core.model.q_head import NUM_SCALARS
from trm_core.model.trm import TinyRecursiveModel
from trm_core.optim.build import build_optimizers
from trm_core.optim.ema import WeightAverage
from trm_core.optim.schedule import lr_factor
from trm_core.training import checkpoint as checkpoints
from trm_core.training.episodes import Decision, Episodes
from trm_core.training.features import Features
from trm_core.training.loggers import MetricsLogger
from trm_core.training.metrics import Averages
from trm_core.training.state import TrainingState
from trm_core.training.stopping import StopFlag

_SCALE_ROWS = 2048  # rows that the input scale is taken from

Evaluate = Callable[[TinyRecursiveModel], dict[str, float]]


@dataclass(frozen=True)
class Hooks:
    """What the loop tells its caller. `evaluate` gets the model with the weights that count."""

    evaluate: Evaluate | None = None
    on_step: Callable[[int, dict[str, float]], None] = lambda step, values: None
    log: Callable[[str], None] = lambda message: None


class Trainer:
    """Built from a resolved config and open files; `run` trains to total_steps or until asked to stop."""

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
        # Files that are mixed agree on everything, prices included (`trm_core.runs.prepare`).
        prices = torch.as_tensor(files[0][0].prices, dtype=torch.float32, device=device)
        replay = target = None
        if features.dqn:
            width = config.arch.hidden_size + NUM_SCALARS
            replay = ReplayBuffer(dqn.buffer_capacity, width, model.q_head.num_actions, device, dqn.max_age)
            target = TargetNetwork(model.q_head, dqn)
        self.episodes = Episodes(model, config, prices, replay)
        shapes = stream_like(files[0][0], training.global_batch_size).to(device)
        self.state = TrainingState(
            model=model,
            optimizers=build_optimizers(model, config),
            average=None if training.ema_decay is None else WeightAverage(model, training.ema_decay),
            target=target,
            replay=replay,
            scale=self.episodes.scale,
            stream=stream,
            carry=self.episodes.initial_carry(shapes),
        )
        self.loss = StepLoss(model, config)
        self.averages = Averages()
        self.best: float | None = None

    @property
    def notes(self) -> list[str]:
        """Choices made automatically, with their reasons."""
        return self.state.optimizers.notes

    def replayed(self, step: int) -> ReplayedTargets | None:
        """Transitions to learn Q from, or None before there are enough."""
        state, dqn = self.state, self.config.dqn
        if state.replay is None or state.target is None or len(state.replay.ready(step)) < dqn.buffer_min_size:
            return None
        draws = self.episodes.draws(step, Purpose.REPLAY, dqn.batch_size)
        batch = state.replay.sample(draws, step)
        return td_targets(state.model.q_head, state.target.head, batch, dqn.gamma, state.scale.value)

    def step(self) -> tuple[StepResult, Decision]:
        """One optimiser step. Raises DivergedError before anything is updated."""
        state, training, step = self.state, self.config.training, self.state.step
        fresh = int(state.carry.halted.sum())
        state.carry = self.episodes.begin(state.carry, state.stream.take(fresh).to(self.device), step)
        replayed = self.replayed(step)
        policy_only = training.predictor_steps is not None and step >= training.predictor_steps
        # Dropout belongs to learning: a finished predictor shows the policy the states that evaluation will show it.
        state.model.train(not policy_only)
        if step == training.predictor_steps and state.average is not None:
            # The policy has to learn from the states that it will meet: those of the averaged weights.
            state.average.copy_to(state.model)
        result = self.loss(state.carry, replayed, step / training.total_steps, policy_only)
        if not bool(result.loss.isfinite()):
            bad = [name for name, term in result.terms.items() if not bool(term.total.isfinite())]
            raise self.diverged(f"the loss is not finite ({', '.join(bad) or 'the sum'})")
        if result.loss.requires_grad:
            result.loss.backward()
        optimizers = state.optimizers
        norms = optimizers.clip(training.grad_clip_norm, self.config.dqn.grad_clip_norm)
        if not bool(torch.stack(norms).isfinite().all()):
            raise self.diverged("the gradient is not finite")
        warmup, least = training.lr_warmup_steps, training.lr_min_ratio
        # The model's cosine ends where its learning ends.
        optimizers.set_factors(
            lr_factor(step, warmup, training.predictor_steps or training.total_steps, least),
            lr_factor(step, warmup, training.total_steps, least),
        )
        optimizers.step()
        optimizers.zero_grad()
        if state.average is not None:
            state.average.update(state.model)
        if state.target is not None:
            state.target.follow(state.model.q_head, step + 1)
        state.carry, decision = self.episodes.decide(state.carry, result, epsilon_at(self.config.dqn, step), step)
        state.step = step + 1
        for name, norm in zip(("train/grad_norm", "train/policy_grad_norm"), norms, strict=True):
            self.averages.add_mean(name, norm)
        self.measure(result, decision)
        return result, decision

    def diverged(self, what: str) -> DivergedError:
        training = self.config.training
        return DivergedError(
            f"step {self.state.step + 1}: {what}",
            hint=f"lower the rate: training.base_lr={training.base_lr / 2:g}, or training.grad_clip_norm="
            f"{training.grad_clip_norm / 2:g}",
        )

    @torch.no_grad()
    def measure(self, result: StepResult, decision: Decision) -> None:
        """Add one step to the averages."""
        add, mean = self.averages.add, self.averages.add_mean
        mean("train/loss", result.loss)
        for name, term in result.terms.items():
            add(f"train/{name}", term.total, term.weight)
        quality, rows = result.quality, result.quality.valid
        add("train/accuracy", (quality.accuracy * rows).sum(), rows.sum())
        add("train/exact_accuracy", (quality.exact & rows).sum(), rows.sum())
        halted = decision.action == Action.HALT
        add("train/final_accuracy", (quality.accuracy * (halted & rows)).sum(), (halted & rows).sum())
        capsules = self.state.carry.capsules
        add("train/num_expansions", (capsules.num_opened * halted).sum(), halted.sum())
        add("train/expansion_cost", (capsules.spent * halted).sum(), halted.sum())
        add("train/ponder_cost", (self.state.carry.steps * halted).sum(), halted.sum())
        for action, name in ((0, "action_0_continue"), (1, "action_1_halt"), (2, "action_2_expand")):
            mean(f"train/{name}", (decision.action == action).float())
        mean("train/action_expand_pct", 100.0 * (decision.action == Action.EXPAND).float())
        if self.features.dqn:
            q_values = result.output.q_values
            mean("train/dqn_q_mean", q_values)
            if q_values.shape[1] > Action.EXPAND:
                mean("train/q_expand_mean", q_values[:, Action.EXPAND])
            rewards = torch.cat([decision.reward[decision.settled], decision.terminal[halted]])
            if len(rewards):
                mean("train/dqn_reward_mean", rewards)
        if result.td_error is not None:
            mean("train/dqn_td_error_mean", result.td_error.abs())

    def numbers_now(self) -> dict[str, float]:
        """Metrics that are read off the state instead of averaged."""
        state = self.state
        values = {
            "train/lr": state.optimizers.all[-2].param_groups[0]["lr"],
            "train/step": float(state.step),
            "train/epoch": state.stream.epoch,
        }
        if state.replay is not None:
            values["train/dqn_epsilon"] = epsilon_at(self.config.dqn, state.step - 1)
            values["train/dqn_buffer_size"] = float(len(state.replay))
            values["train/dqn_reward_scale"] = state.scale.value
        return values

    def run(self, logger: MetricsLogger, stop: StopFlag, hooks: Hooks) -> str:
        """Train. Returns 'done', 'stopped' (state saved) or 'interrupted' (state saved)."""
        training = self.config.training
        began, first = time.perf_counter(), self.state.step
        outcome = "done"
        while self.state.step < training.total_steps:
            self.step()
            step = self.state.step
            if step % training.log_interval == 0 or step == training.total_steps:
                values = {**self.averages.take(), **self.numbers_now()}
                values["train/steps_per_sec"] = (step - first) / max(time.perf_counter() - began, 1e-9)
                logger.log(step, values)
                hooks.on_step(step, values)
            if hooks.evaluate is not None and step % training.eval_interval == 0 and step < training.total_steps:
                self.evaluate(hooks.evaluate, logger, hooks.log)
            if stop.received is not None:
                outcome = "interrupted" if stop.received.name == "SIGINT" else "stopped"
                hooks.log(f"{stop.received.name}: saving at step {step} and stopping")
                break
            if training.stop_at_step is not None and first < training.stop_at_step <= step < training.total_steps:
                outcome = "stopped"
                break
            if step % training.checkpoint_interval == 0 and step < training.total_steps:
                self.save()
        self.save()
        return outcome

    def evaluate(self, evaluate: Evaluate, logger: MetricsLogger, log: Callable[[str], None]) -> None:
        """Evaluate with the weights that count; the best result so far is saved and kept."""
        state = self.state
        if state.average is not None:
            with state.average.applied_to(state.model):
                values = evaluate(state.model)
        else:
            values = evaluate(state.model)
        logger.log(state.step, values)
        log(f"step {state.step}: accuracy {values['eval/accuracy']:.4f}, opened {values['eval/opened']:.2f}")
        if self.best is None or values["eval/accuracy"] > self.best:
            self.best = values["eval/accuracy"]
            if self.run_path is not None:
                self.save()
                checkpoints.mark_best(self.run_path, state.step)

    def save(self) -> None:
        """Write a checkpoint and prune old ones."""
        if self.run_path is None:
            return
        checkpoints.save_checkpoint(self.run_path, self.state.to_checkpoint({**self.about, "best": self.best}))
        checkpoints.prune(self.run_path, self.config.training.keep_checkpoints)

    def resume(self) -> list[str]:
        """Go on from the newest checkpoint that verifies; returns what there is to say about it."""
        assert self.run_path is not None
        folder, notes = checkpoints.find_checkpoint(self.run_path)
        checkpoints.drop_newer(self.run_path, folder)
        saved = checkpoints.load_checkpoint(folder)
        if saved.state.get("shape") != self.about.get("shape"):
            raise CheckpointError(
                f"{folder} was trained on data of another shape: {saved.state.get('shape')}, "
                f"now {self.about.get('shape')}",
                hint="resume with the data of the run",
            )
        self.state.restore(saved)
        self.best = saved.state.get("best")
        return [*notes, f"resuming from {folder.name} (step {saved.step})"]


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
