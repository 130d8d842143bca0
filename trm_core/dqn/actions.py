"""The three actions, which of them are allowed, and epsilon-greedy choice among those."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from trm_core.model.capsule_state import CapsuleState
from trm_core.model.trm import StepOutput


class Action(IntEnum):
    """What a row does after a reasoning step."""

    CONTINUE = 0
    HALT = 1
    EXPAND = 2


def affordable(capsules: CapsuleState, budget: float | None) -> Tensor:
    """[B, k] bool: capsules that may still be opened within the budget (price units; None: no limit)."""
    possible = capsules.can_open()
    if budget is None:
        return possible
    # A hair of slack: the budget of three capsules at 0.1 each must buy three.
    return possible & (capsules.spent[:, None] + capsules.prices <= budget * (1 + 1e-6))


def valid_actions(
    capsules: CapsuleState, steps: Tensor, max_steps: int, num_actions: int, budget: float | None
) -> Tensor:
    """[B, A] bool. After step T only HALT is left; EXPAND needs an affordable unopened capsule with children."""
    going = steps < max_steps
    columns = [going, torch.ones_like(going)]
    if num_actions > 2:
        columns.append(going & affordable(capsules, budget).any(1))
    return torch.stack(columns, 1)


def greedy(q_values: Tensor, valid: Tensor) -> Tensor:
    """[B] the best valid action."""
    return q_values.masked_fill(~valid, -torch.inf).argmax(1)


def act_continues(output: StepOutput, halt_above: float = 0.0) -> Tensor:
    """[B] bool: whether adaptive computation time, i.e. halting without Q-learning, goes on thinking.

    It halts once the halt logit is above `halt_above` (0: the answer is more likely right than not, as TRM halts in
    training) or, with HRM's continue logit, once halting is worth more than going on.
    """
    if output.continue_logit is not None:
        return output.halt_logit <= output.continue_logit
    return output.halt_logit <= halt_above


def uniform_valid(valid: Tensor, choice: Tensor) -> Tensor:
    """[B] an action drawn uniformly among each row's valid ones; choice: uniform draws [B]."""
    nth = (choice * valid.sum(1)).long() + 1
    return (valid.long().cumsum(1) >= nth[:, None]).long().argmax(1)


def epsilon_greedy(
    q_values: Tensor, valid: Tensor, epsilon: float, explore: Tensor, choice: Tensor
) -> tuple[Tensor, Tensor]:
    """Actions [B] and which of them were exploratory [B] bool.

    explore, choice: uniform draws [B]. An exploring row picks uniformly among its valid actions.
    """
    exploring = explore < epsilon
    return torch.where(exploring, uniform_valid(valid, choice), greedy(q_values, valid)), exploring
