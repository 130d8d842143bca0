"""Rewards of the decision process, and the running scale they are divided by.

The reward of an action is computed one reasoning step later, when its effect is visible:

    r_t = u_{t+1} - u_t - step_penalty - price_level * cost + [EXPAND and u rose enough] * bonus
          + [memory bank on and u rose enough] * memory bonus

HALT is rewarded at once, by the correctness of the answer. u is the row's accuracy or its mean probability of the right
answer. Intrinsic rewards (`trm_core.dqn.curiosity`) are kept apart throughout, because they have a scale of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trm_core.config.schema import DQNConfig
from trm_core.distributed.collectives import all_sum
from trm_core.dqn.actions import Action


@dataclass(frozen=True)
class StepReward:
    """The parts of the rewards of B actions, each [B]; `total` is what is stored."""

    improvement: Tensor
    step: Tensor
    price: Tensor
    expansion_bonus: Tensor
    memory_bonus: Tensor

    @property
    def total(self) -> Tensor:
        return self.improvement + self.step + self.price + self.expansion_bonus + self.memory_bonus


def step_reward(
    config: DQNConfig, before: Tensor, after: Tensor, action: Tensor, cost: Tensor, price: Tensor, remembers: bool
) -> StepReward:
    """Rewards [B] of CONTINUE or EXPAND. before, after: u; cost: price units paid; price: the episode's level;
    remembers: the memory bank is on.
    """
    rise = after - before
    helped = (rise > 0) & (rise >= config.reward_min_rise)
    return StepReward(
        improvement=rise,
        step=torch.full_like(rise, -config.reward_step_penalty),
        price=-price * cost,
        expansion_bonus=(helped & (action == Action.EXPAND)) * config.reward_expansion_bonus,
        memory_bonus=helped * (config.memory_reward_bonus if remembers else 0.0),
    )


def terminal_reward(config: DQNConfig, accuracy: Tensor) -> Tensor:
    """[B] reward of HALT, between incorrect and correct. accuracy [B]: the row's accuracy (one label: 0 or 1; puzzles:
    1 only without a mistake).
    """
    wrong, right = config.reward_terminal_incorrect, config.reward_terminal_correct
    return wrong + (right - wrong) * accuracy


@dataclass
class RewardScale:
    """Running standard deviation of rewards (Welford). Rewards are divided by it and never centred: subtracting a mean
    would change which stopping time is optimal."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations

    def update(self, rewards: Tensor) -> None:
        """Take in the rewards [n] of this rank's step and those of all other ranks. Every rank calls it."""
        values = rewards.double()
        n, total = all_sum(torch.stack([torch.as_tensor(float(len(values)), dtype=torch.float64), values.sum().cpu()]))
        if n == 0:
            return
        mean = total / n
        squares = float(all_sum((values.cpu() - mean).square().sum()))
        count, mean = int(n), float(mean)
        delta, together = mean - self.mean, self.count + count
        self.squares += squares + delta * delta * self.count * count / together
        self.mean += delta * count / together
        self.count = together

    @property
    def value(self) -> float:
        """The divisor; 1 until there are enough rewards to estimate it."""
        if self.count < 100:
            return 1.0
        return max((self.squares / self.count) ** 0.5, 1e-3)
