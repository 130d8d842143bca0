"""One optimiser step.

New samples into halted rows -> one forward with the whole loss (`StepLoss`), in parts under gradient accumulation ->
backward, clip, update -> one decision per row (`Episodes`) -> what changes without a gradient (`upkeep`).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trm_core.config.schema import Config
from trm_core.data.batch import CapsuleBatch
from trm_core.devices import on_host
from trm_core.distributed.collectives import all_sum, rank, world_size
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
from trm_core.keyed_random import Purpose, keyed_uniform
from trm_core.losses import StepLoss, StepResult, joined
from trm_core.model.carry import Carry
from trm_core.model.rows import take_rows
from trm_core.optim.schedule import lr_factor
from trm_core.training import measure
from trm_core.training.agreement import Standing
from trm_core.training.episodes import Decision, Episodes
from trm_core.training.faults import NotFinite
from trm_core.training.gradient_monitor import GradientMonitor
from trm_core.training.metrics import Averages
from trm_core.training.state import TrainingState
from trm_core.training.upkeep import Upkeep, keep_up


class StepTaker:
    """Takes one step of the state after another, and collects what they measure in `averages`."""

    def __init__(self, config: Config, state: TrainingState, episodes: Episodes) -> None:
        self.config, self.state, self.episodes = config, state, episodes
        self.rows = len(state.carry.halted)  # of this process
        self.device = state.carry.z_H.device
        self.loss = StepLoss(state.model, config, state.curiosity)
        # The loss as DDP wraps it for the current phase of training.
        self.learner: StepLoss | DistributedDataParallel | None = None
        self.policy_only = False
        self.averages = Averages()
        self.gradients: GradientMonitor | None = None
        parts = (state.optimizers.model_params, state.optimizers.policy_params)
        if config.training.monitor_gradients and any(parts):
            learners = dict(state.model.named_children())
            if state.curiosity is not None:
                learners["curiosity"] = state.curiosity.predictor
            self.gradients = GradientMonitor(nn.ModuleDict(learners), parts)

    def replayed(self, step: int, enough: bool) -> ReplayedTargets | None:
        """Transitions to learn Q from: an empty batch before there are enough; None without DQN."""
        state, dqn = self.state, self.config.dqn
        if state.replay is None or state.target is None:
            return None
        if not enough:
            return no_transitions(state.model.q_head.state_width, dqn.sequence_length, self.device)
        divisors = RewardDivisors(state.scale.value, state.intrinsic_scale.value / max(dqn.curiosity_weight, 1e-8))
        networks = (state.model.q_head, state.target.head)
        numbers = torch.arange(dqn.batch_size) + rank() * dqn.batch_size
        draws = keyed_uniform(self.config.training.seed, step, Purpose.REPLAY, numbers)
        batch = state.replay.sample(draws, step, beta_at(self.config, step))
        if dqn.sequence_length == 1:
            return td_targets(*networks, batch, dqn.gamma, divisors)
        slots, alive = state.replay.sequences(batch.slot, dqn.sequence_length)
        weight = batch.weight.repeat_interleave(dqn.sequence_length)
        runs = replace(state.replay.read(slots.flatten()), weight=weight)
        return sequence_targets(*networks, runs, alive, dqn.gamma, divisors)

    def draw(self, standing: Standing) -> CapsuleBatch:
        """New samples for the rows that halted, from the draw that all processes share."""
        stream = self.state.stream
        if self.config.data.draw == "halted":
            return stream.take(len(standing.waiting), standing.rows_before, standing.rows_after)
        before = rank() * self.rows
        batch = stream.take(self.rows, before, (world_size() - 1) * self.rows - before)
        return batch.select(standing.waiting)

    def learn(self, policy_only: bool) -> StepLoss | DistributedDataParallel:
        """The loss, wrapped so that all ranks share its gradient. In the policy phase the predictor has none."""
        if self.learner is None or policy_only != self.policy_only:
            for parameter in self.state.optimizers.model_params:
                parameter.requires_grad_(not policy_only)
            # Puzzle embeddings, which may be all that learns, are not parameters and share their gradient themselves.
            learns = any(parameter.requires_grad for parameter in self.loss.parameters())
            self.learner = shared_by_ranks(self.loss) if world_size() > 1 and learns else self.loss
            self.policy_only = policy_only
        return self.learner

    def take(self, standing: Standing) -> tuple[StepResult, Decision]:
        """One optimiser step. Raises NotFinite before anything is updated."""
        state, training, step = self.state, self.config.training, self.state.step
        kept = state.carry
        began = time.perf_counter()
        fresh = self.draw(standing).to(self.device)
        waited = time.perf_counter() - began
        state.carry = self.episodes.begin(state.carry, fresh, step, standing.waiting)
        replayed = self.replayed(step, standing.can_replay)
        policy_only = training.predictor_steps is not None and step >= training.predictor_steps
        # No dropout once the predictor is finished: the policy must learn from the states that evaluation will show it.
        if state.model.training == policy_only:
            state.model.train(not policy_only)
        if step == training.predictor_steps and state.average is not None:
            # The policy must learn from the states it will meet in use: those of the averaged weights.
            state.average.take_over()
        result = self.differentiate(replayed, policy_only)
        if not standing.can_replay:
            # Its gradient is zero, but an optimiser that sees one starts to count steps, decay weights and keep state.
            state.model.q_head.value_net.zero_grad()
        self.update(step, kept, result)
        if state.replay is not None and standing.can_replay and replayed is not None and result.td_error is not None:
            # Before the decision stores new states, which may take the slots of the transitions just replayed.
            self.reprioritise(state.replay, replayed, result.td_error)
        before = state.carry
        state.carry, decision = self.episodes.decide(before, result, step)
        upkeep = keep_up(state.model, self.config, before, result, decision, step)
        state.step = step + 1
        self.measure(before, result, replayed if standing.can_replay else None, decision, upkeep)
        elapsed = torch.tensor(time.perf_counter() - began)
        self.averages.add("train/data_time_share", torch.tensor(waited), elapsed)
        self.averages.add("train/samples_per_sec", torch.tensor(float(training.global_batch_size)), elapsed)
        self.averages.settle()
        return result, decision

    @torch.no_grad()
    def measure(
        self, before: Carry, result: StepResult, learned: ReplayedTargets | None, decision: Decision, upkeep: Upkeep
    ) -> None:
        """Collect the metrics of the step. `learned`: the transitions that Q has learned from."""
        state, add = self.state, self.averages.add
        for pair in measure.every_step(before, state.carry, result, decision, upkeep):
            add(*pair)
        if state.replay is not None:
            for pair in measure.rewards(decision, self.config.dqn.curiosity_weight):
                add(*pair)
        if self.logs_at(state.step):
            for pair in measure.now(state, self.config, before, result, learned, decision):
                add(*pair)

    def differentiate(self, replayed: ReplayedTargets | None, policy_only: bool) -> StepResult:
        """Forward and backward of the whole batch, part by part: the gradient is that of the mean over the examples of
        all parts and ranks, however many parts there are.
        """
        state, learner, count = self.state, self.learn(policy_only), self.config.training.accumulation_steps
        rows = self.rows // count
        results: list[StepResult] = []
        transitions = [None if replayed is None else replayed.without_rows()] * (count - 1) + [replayed]
        parts = [(take_rows(state.carry, slice(n * rows, (n + 1) * rows)), some) for n, some in enumerate(transitions)]
        # DDP takes the mean over ranks, so each rank divides by the mean weight of a rank.
        weights = torch.stack([self.loss.weights(*part) for part in parts])
        divisors = all_sum(weights.sum(0)) / world_size()
        for number, part in enumerate(parts, start=1):
            with nullcontext() if number == count or isinstance(learner, StepLoss) else learner.no_sync():
                results.append(learner(*part, state.step, policy_only, divisors))
                loss = results[-1].loss
                if loss.requires_grad:
                    (loss if state.loss_scale is None else loss * state.loss_scale.value).backward()
        return joined(results)

    def logs_at(self, step: int) -> bool:
        """Whether a line of metrics is written after `step` steps."""
        return step % self.config.training.log_interval == 0 or step == self.config.training.total_steps

    def update(self, step: int, kept: Carry, result: StepResult) -> None:
        """Move the weights, and let the average and the target network follow. Raises NotFinite before that."""
        state = self.state
        norms = self.norms(kept, result)
        if norms is not None:
            self.move(step, norms)
        state.optimizers.zero_grad()
        if norms is not None and state.average is not None:
            state.average.update()
            learned = state.optimizers.model_params
            if learned and self.logs_at(step + 1):
                averages = state.average.beside(learned)
                self.averages.add_mean("train/average_lag", apart(averages, learned))
        if state.target is not None:
            self.follow(state.target, step + 1)

    def norms(self, kept: Carry, result: StepResult) -> tuple[Tensor, ...] | None:
        """The norm of each part's gradient; None if it left the range of float16 and the step is to be skipped. Raises
        NotFinite if the loss is not finite, or the gradient for another reason.
        """
        optimizers, scale = self.state.optimizers, self.state.loss_scale
        if scale is not None:
            optimizers.divide_gradients(scale.value)
        measured = None if self.gradients is None else self.gradients.measure()
        norms = optimizers.norms() if measured is None else measured.totals
        lost = all_sum((~result.loss.isfinite()).float())
        # Both questions at once, since a GPU's answer comes only when all that was queued before is done.
        loss_broken, finite = torch.stack([lost > 0, torch.stack(norms).isfinite().all()]).tolist()
        if loss_broken:
            raise loss_not_finite(result, kept)
        if scale is not None:
            finite = finite and (optimizers.puzzles is None or optimizers.puzzles.all_finite())
            self.averages.add_mean("train/loss_scale", torch.tensor(scale.value))
            self.averages.add_mean("train/loss_scale_overflow", torch.tensor(float(not finite)))
            if finite:
                scale.hold()
            elif scale.lower():
                return None
        if measured is not None:
            self.averages.add_vector(measured.names, measured.values)
        if not finite:
            raise NotFinite("the gradient is not finite", kept, torch.zeros_like(kept.halted))
        return norms

    def move(self, step: int, norms: tuple[Tensor, ...]) -> None:
        """Clip the gradients, and step every optimiser at its learning rate."""
        state, training, optimizers = self.state, self.config.training, self.state.optimizers
        limits = (training.grad_clip_norm, self.config.dqn.grad_clip_norm)
        for part, norm, limit in zip(("", "policy_"), norms, limits, strict=True):
            self.averages.add_mean(f"train/{part}grad_norm", norm)
            self.averages.add_mean(f"train/{part}grad_clip_ratio", (norm > limit).float())
        optimizers.clip(norms, limits)
        warmup, least = training.lr_warmup_steps, training.lr_min_ratio
        # The model's cosine schedule ends where its learning ends.
        optimizers.set_factors(
            state.faults.rate * lr_factor(step, warmup, training.predictor_steps or training.total_steps, least),
            state.faults.rate * lr_factor(step, warmup, training.total_steps, least),
        )
        groups = {"": optimizers.model_params, "policy_": optimizers.policy_params} if self.logs_at(step + 1) else {}
        before = {part: [p.detach().clone() for p in weights] for part, weights in groups.items()}
        optimizers.step()
        if groups:
            self.add_movement(groups, before)

    def add_movement(self, groups: Mapping[str, Sequence[Tensor]], before: Mapping[str, list[Tensor]]) -> None:
        """Measure how far a step has moved the weights of the groups that are learning."""
        unmoved, of_all = [], sum(weight.numel() for weights in groups.values() for weight in weights)
        for part, weights in groups.items():
            if any(weight.grad is not None for weight in weights):
                ratio, still = movement(before[part], weights)
                self.averages.add_mean(f"train/{part}update_ratio", ratio)
                unmoved.append(still / of_all)
        if unmoved:
            self.averages.add_mean("train/unmoved_weights", torch.stack(unmoved).sum())

    def follow(self, target: TargetNetwork, step: int) -> None:
        """Let the target network follow; if it rarely does, or a line is due, measure how far it moved."""
        online, measured = self.state.model.q_head, target.due(step) and (target.tau is None or self.logs_at(step))
        before = target.distance(online) if measured else None
        target.follow(online, step)
        if before is not None:
            # Within rounding of the Q-head, there is no distance left to measure.
            apart = (before > 1e-5).double()
            closed = 1.0 - target.distance(online) / before.clamp(min=1e-5)
            self.averages.add("train/dqn_target_closed", closed * apart, apart)

    def reprioritise(self, replay: ReplayBuffer, replayed: ReplayedTargets, td_error: Tensor) -> None:
        """Pass the TD errors of the replayed transitions to the buffer, if it uses them."""
        dqn = self.config.dqn
        if dqn.replay == "prioritized" or dqn.td_error_threshold > 0:
            slots, weights, errors = on_host(replayed.slot, replayed.weight, td_error)
            replay.update_priorities(slots[weights > 0], errors[weights > 0])


def loss_not_finite(result: StepResult, kept: Carry) -> NotFinite:
    """The fault, which names the terms that are not finite."""
    bad = [name for name, term in result.terms.items() if not bool(term.total.isfinite().all())]
    where = ", ".join(bad) or ("in another process" if bool(result.loss.isfinite()) else "the sum")
    rows = ~result.output.logits.isfinite().flatten(1).all(1)
    return NotFinite(f"the loss is not finite ({where})", kept, rows)


def shared_by_ranks(loss: StepLoss) -> DistributedDataParallel:
    """The loss, wrapped so that its gradient is the mean over ranks."""
    with warnings.catch_warnings():
        # Not every version of torch that we support has the argument that replaces it.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        # Buffers get the same updates on every rank, or are meant to be the rank's own.
        return DistributedDataParallel(loss, broadcast_buffers=False)


@torch.no_grad()
def apart(averages: list[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Distance of the weights from their averages, divided by the norm of the weights."""
    return norm_of(torch._foreach_sub(averages, list(weights))) / norm_of(weights)


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of all tensors together; never quite 0, so that it can be a divisor."""
    return torch.stack(torch._foreach_norm(list(tensors))).norm().clamp(min=1e-12)


@torch.no_grad()
def movement(before: list[Tensor], after: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The norm of the change of all weights divided by their norm, and how many weights lie in tensors that have a
    non-zero gradient but did not change at all. At least one tensor of `after` must have a `.grad`.
    """
    changes = torch._foreach_norm(torch._foreach_sub(list(after), before))
    ratio = torch.stack(changes).norm() / norm_of(before)
    learning = [(change, p.grad, p.numel()) for change, p in zip(changes, after, strict=True) if p.grad is not None]
    grads = torch.stack(torch._foreach_norm([grad for _, grad, _ in learning]))
    still = (torch.stack([change for change, _, _ in learning]) == 0) & (grads > 0)
    # Sizes go in as Python numbers: a tensor of them would have to be copied to the GPU, which would stall.
    return ratio, torch.stack(torch._foreach_mul(list(still.float().unbind()), [size for *_, size in learning])).sum()
