"""Policies to evaluate: the learned one and the ones it has to beat.

A policy looks at the rows that are still thinking and decides what each does next. All but `random` choose capsules
with the run's own selector, so that policies differ in *when* they stop and buy, not in what they may look at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from trm_core.config.schema import DQNConfig
from trm_core.dqn.actions import Action, act_continues, affordable, greedy
from trm_core.dqn.selectors import choose_capsules, selection_scores
from trm_core.keyed_random import Purpose, keyed_uniform
from trm_core.model.capsule_state import CapsuleState
from trm_core.model.q_head import largest_probability
from trm_core.model.trm import StepOutput, TinyRecursiveModel


@dataclass(frozen=True)
class Situation:
    """The n rows still thinking, after a reasoning step."""

    model: TinyRecursiveModel
    dqn: DQNConfig
    output: StepOutput
    capsules: CapsuleState
    steps: Tensor  # [n] steps done
    rows: Tensor  # [n] number of each row in the split, or of each sample asked
    valid: Tensor  # [n, A] bool


class Policy(Protocol):
    """`name` labels the table; `price` is the price level put into the state; `selects`: whether the policy opens what
    the run's selector chooses.
    """

    selects: ClassVar[bool]
    name: str
    price: float

    def open_first(self, capsules: CapsuleState) -> Tensor:
        """[n, k] bool: capsules opened before the first step."""
        ...

    def decide(self, now: Situation) -> tuple[Tensor, Tensor]:
        """Actions [n] and capsules to open [n, k]; a capsule is opened only with EXPAND."""
        ...


def selectors_choice(now: Situation, expanding: Tensor) -> Tensor:
    """[n, k] bool: what the run's selector opens in the rows where `expanding` [n] holds."""
    dqn, capsules = now.dqn, now.capsules
    if not bool(expanding.any()):
        return nothing(capsules)  # also where the model has nothing to open and so no selector
    random = keyed_uniform(0, now.steps, Purpose.SELECT, now.rows, capsules.prices.numel())
    scores = selection_scores(dqn.expansion_selector, now.model, now.output, capsules, random)
    allowed = affordable(capsules, dqn.budget) & expanding[:, None]
    return choose_capsules(scores, capsules, allowed, dqn.expand_count, dqn.budget)


def nothing(capsules: CapsuleState) -> Tensor:
    return torch.zeros_like(capsules.expanded)


@dataclass
class LearnedPolicy:
    """The best valid action by Q-value, at a price level."""

    selects: ClassVar[bool] = True
    price: float
    name: str = "learned"

    def open_first(self, capsules: CapsuleState) -> Tensor:
        return nothing(capsules)

    def decide(self, now: Situation) -> tuple[Tensor, Tensor]:
        action = greedy(now.output.q_values, now.valid)
        return action, selectors_choice(now, action == Action.EXPAND)


@dataclass
class ThresholdPolicy:
    """HALT once the largest probability reaches `confidence`; until then open the selector's choice, or continue if
    nothing can be opened.
    """

    selects: ClassVar[bool] = True
    confidence: float
    price: float
    name: str = "threshold"

    def open_first(self, capsules: CapsuleState) -> Tensor:
        return nothing(capsules)

    def decide(self, now: Situation) -> tuple[Tensor, Tensor]:
        largest = largest_probability(now.output.q_state)
        can_expand = now.valid[:, Action.EXPAND] if now.valid.shape[1] > 2 else torch.zeros_like(now.valid[:, 0])
        wanted = torch.where(can_expand, Action.EXPAND, Action.CONTINUE)
        action = torch.where((largest >= self.confidence) | ~now.valid[:, Action.CONTINUE], Action.HALT, wanted)
        return action, selectors_choice(now, action == Action.EXPAND)


@dataclass
class FixedPolicy:
    """Opens capsules only at the start, and thinks all T steps: `never` opens none, `all` opens everything."""

    selects: ClassVar[bool] = False
    open_all: bool
    price: float
    name: str

    def open_first(self, capsules: CapsuleState) -> Tensor:
        return capsules.can_open() if self.open_all else nothing(capsules)

    def decide(self, now: Situation) -> tuple[Tensor, Tensor]:
        action = torch.where(now.valid[:, Action.CONTINUE], Action.CONTINUE, Action.HALT)
        return action, nothing(now.capsules)


@dataclass
class RandomPolicy:
    """Repeats another policy's actions row by row, but opens capsules chosen uniformly: the same number at the same
    moments, as far as `dqn.budget` reaches.
    """

    selects: ClassVar[bool] = False
    actions: Tensor  # [N, T] int8 of the other policy, -1 after its end
    counts: Tensor  # [N, T] capsules that the other policy opened
    price: float
    seed: int = 0
    name: str = "random"

    def open_first(self, capsules: CapsuleState) -> Tensor:
        return nothing(capsules)

    def decide(self, now: Situation) -> tuple[Tensor, Tensor]:
        moment = (now.rows, now.steps - 1)
        action, count = self.actions[moment].long(), self.counts[moment]
        k, budget = now.capsules.expanded.shape[1], now.dqn.budget
        draws = keyed_uniform(self.seed, now.steps, Purpose.SELECT, now.rows, k)
        capsules, opened = now.capsules, nothing(now.capsules)
        for number in range(int(count.max()) if len(count) else 0):
            allowed = affordable(capsules, budget) & (count > number)[:, None]
            one = choose_capsules(draws * capsules.prices, capsules, allowed, 1, budget)
            capsules, opened = capsules.opened(one), opened | one
        return action, opened


@dataclass
class ActPolicy:
    """Adaptive computation time without Q-learning: HALT once the halt logit is above the model's threshold."""

    selects: ClassVar[bool] = False
    price: float
    name: str = "act"

    def open_first(self, capsules: CapsuleState) -> Tensor:
        return nothing(capsules)

    def decide(self, now: Situation) -> tuple[Tensor, Tensor]:
        going = now.valid[:, Action.CONTINUE] & act_continues(now.output, now.model.halt_above)
        return torch.where(going, Action.CONTINUE, Action.HALT), nothing(now.capsules)


# Policies that need only a price level; one that is added here is known everywhere. `learned`, `threshold` and `random`
# need more, which their callers supply (`report.Evaluator.table`, `inference.trained`).
PLAIN: dict[str, Callable[[float], Policy]] = {
    "never": partial(FixedPolicy, False, name="never"),
    "all": partial(FixedPolicy, True, name="all"),
    "act": ActPolicy,
}
