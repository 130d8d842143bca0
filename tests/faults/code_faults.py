"""Faults of behaviour: code of the training process is patched while it trains."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from tests.faults.plan import Fault, Plan
from trm_core.data.stream import SampleStream
from trm_core.distributed.collectives import rank
from trm_core.dqn.replay import ReplayBuffer
from trm_core.model.concepts import ConceptVocabulary
from trm_core.model.q_head import QHead
from trm_core.training import episodes
from trm_core.training.loggers import JsonLines
from trm_core.training.step import StepTaker


def entropy_collapse(plan: Plan) -> None:
    """The value of one action exceeds the others by an amount that the head has no time to unlearn."""
    favourite = plan.seed % 2  # CONTINUE or HALT
    most = plan.of(1.0, 10.0, 100.0)

    def biased(original: Any) -> Any:
        def at_price(head: QHead, outputs: torch.Tensor, q_state: torch.Tensor) -> torch.Tensor:
            values = original(head, outputs, q_state).clone()
            values[:, favourite] += most
            return values

        return at_price

    plan.wrap(QHead, "at_price", biased)
    # Otherwise exploration would hide how little the policy still tries.
    plan.settings |= {"dqn.epsilon_decay": round(0.3 * plan.steps), "dqn.epsilon_end": plan.of(0.05, 0.02, 0.01)}


def not_finite(plan: Plan) -> None:
    """The loss is NaN at one step, at four separate ones, or for ever, even after a rollback to a checkpoint."""
    first = round(0.6 * plan.steps)
    steps = plan.of({first}, {first + 15 * n for n in range(4)}, set(range(first, 2 * plan.steps)))

    def spoilt(original: Any) -> Any:
        def differentiate(taker: StepTaker, *arguments: Any) -> Any:
            result = original(taker, *arguments)
            if taker.state.step not in steps:
                return result
            return replace(result, loss=result.loss * float("nan"))

        return differentiate

    plan.wrap(StepTaker, "differentiate", spoilt)


def dead_layer(plan: Plan) -> None:
    """No gradient reaches the first layers: one matrix in the last part of training, a block, or all blocks."""
    begin = round(plan.steps * plan.of(0.6, 0.2, 0.0))
    parts = plan.of(("blocks.0.ffn.down",), ("blocks.0.",), ("blocks.",))

    def killed(original: Any) -> Any:
        def differentiate(taker: StepTaker, *arguments: Any) -> Any:
            result = original(taker, *arguments)
            if taker.state.step >= begin:
                for name, parameter in taker.state.model.recursion.named_parameters():
                    if parameter.grad is not None and any(part in name for part in parts):
                        parameter.grad.zero_()
            return result

        return differentiate

    plan.wrap(StepTaker, "differentiate", killed)


def exploding_gradients(plan: Plan) -> None:
    """The gradient grows exponentially; clipping hides it from the weights."""
    most = plan.of(1e2, 1e4, 1e8)

    def growing(original: Any) -> Any:
        def differentiate(taker: StepTaker, *arguments: Any) -> Any:
            result = original(taker, *arguments)
            factor = most ** (taker.state.step / plan.steps)
            for parameter in taker.state.optimizers.model_params:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
            return result

        return differentiate

    plan.wrap(StepTaker, "differentiate", growing)


class Pace:
    """Sleeps so long that sleep makes up this share of all time."""

    def __init__(self, share: float) -> None:
        self.share, self.last = share, time.perf_counter()

    def sleep(self) -> None:
        self.rest(self.owed())

    def owed(self) -> float:
        """Seconds to sleep for the work done since the last call."""
        now = time.perf_counter()
        worked = min(now - self.last, 0.2)  # an evaluation between two steps does not count
        self.last = now
        return worked * self.share / (1.0 - self.share)

    def rest(self, seconds: float) -> None:
        time.sleep(seconds)
        self.last = time.perf_counter()


def loader_starvation(plan: Plan) -> None:
    pace = Pace(plan.of(0.3, 0.6, 0.8))
    shorter(plan, plan.of(0.9, 0.6, 0.35))

    def slow(original: Any) -> Any:
        def take(stream: SampleStream, *arguments: Any) -> Any:
            pace.sleep()
            return original(stream, *arguments)

        return take

    plan.wrap(SampleStream, "take", slow)


def logging_frequency(plan: Plan) -> None:
    """A line is logged at every step, into a slow sink."""
    pace = Pace(plan.of(0.2, 0.5, 0.8))
    plan.settings["training.log_interval"] = 1
    shorter(plan, plan.of(0.8, 0.6, 0.35))

    def slow(original: Any) -> Any:
        def log(logger: JsonLines, *arguments: Any) -> None:
            original(logger, *arguments)
            pace.sleep()

        return log

    plan.wrap(JsonLines, "log", slow)


def shorter(plan: Plan, share: float) -> None:
    """Let slow runs take fewer steps, so that they last no longer than others."""
    plan.settings["training.total_steps"] = round(share * plan.steps)
    plan.settings["dqn.epsilon_decay"] = round(share * plan.settings["dqn.epsilon_decay"])


def memory_leak(plan: Plan) -> None:
    """Every step keeps some memory."""
    kept: list[torch.Tensor] = []
    size = plan.of(30_000, 250_000, 1_500_000)

    def leaking(original: Any) -> Any:
        def take(taker: StepTaker, *arguments: Any) -> Any:
            kept.append(torch.ones(size, dtype=torch.uint8))  # written to, so that it is resident
            return original(taker, *arguments)

        return take

    plan.wrap(StepTaker, "take", leaking)


def codebook_stale(plan: Plan) -> None:
    """The codebook is learned during half of training, only at its beginning, or never."""
    last = round(plan.steps * plan.of(0.5, 0.05, 0.0))
    plan.settings |= {"arch.enable_concepts": True, "arch.num_concepts": 32, "arch.concept_decay": 0.95}

    def stopping(original: Any) -> Any:
        def update(vocabulary: ConceptVocabulary, inputs: Any, codes: Any, step: int, seed: int) -> None:
            if step < last:
                original(vocabulary, inputs, codes, step, seed)

        return update

    plan.wrap(ConceptVocabulary, "update", stopping)


def replay_stale(plan: Plan) -> None:
    """After a while new transitions no longer enter the buffer, so replay keeps drawing from the first ones."""
    last = round(plan.steps * plan.of(0.6, 0.3, 0.1))
    # Room for everything, so that old transitions are not overwritten.
    plan.settings["dqn.buffer_capacity"] = 2 * plan.steps * int(plan.settings["training.global_batch_size"])
    plan.settings["dqn.buffer_min_size"] = 300

    def closing(original: Any) -> Any:
        def complete(buffer: ReplayBuffer, slots: Any, where: Any, *rest: Any) -> Any:
            late = int(buffer.index.born.max()) >= last
            return original(buffer, slots, torch.zeros_like(where) if late else where, *rest)

        return complete

    plan.wrap(ReplayBuffer, "complete", closing)


def terminal_reward_sign(plan: Plan) -> None:
    """HALT pays for wrong answers."""
    size = plan.of(-0.3, -1.0, -3.0)

    def negated(original: Any) -> Any:
        return lambda *arguments: size * original(*arguments)

    plan.wrap(episodes, "terminal_reward", negated)


def ranks_diverged(plan: Plan) -> None:
    """The second of two processes changes its weights on its own, from a later or an earlier step on."""
    plan.processes = 2
    plan.settings["training.total_steps"] = 130
    begin, size = plan.of((90, 1e-6), (50, 1e-4), (5, 1e-2))

    def drifting(original: Any) -> Callable[..., None]:
        def update(taker: StepTaker, step: int, kept: Any) -> None:
            original(taker, step, kept)
            if rank() == 1 and step >= begin:
                with torch.no_grad():
                    for parameter in taker.state.optimizers.model_params:
                        parameter.mul_(1.0 + size)

        return update

    plan.wrap(StepTaker, "update", drifting)


FAULTS = (
    Fault("entropy-collapse", ("entropy-collapse", "policy-loses"), entropy_collapse),
    Fault("nan", ("nan",), not_finite),
    Fault("dead-layer", ("dead-layer",), dead_layer),
    Fault("exploding-gradients", ("exploding-gradients",), exploding_gradients),
    Fault("loader-starvation", ("loader-starvation",), loader_starvation),
    Fault("logging-frequency", ("logging-frequency",), logging_frequency),
    Fault("memory-leak", ("memory-leak",), memory_leak),
    Fault("codebook-stale", ("codebook-stale",), codebook_stale),
    Fault("replay-stale", ("replay-stale",), replay_stale),
    Fault("terminal-reward-sign", ("terminal-reward-sign",), terminal_reward_sign),
    Fault("ranks-diverged", ("ranks-diverged",), ranks_diverged),
)
