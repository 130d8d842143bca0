"""Rewards of the decision process, and the running scale they are divided by.

The reward of an action is computed one reasoning step later, when its effect is visible:

    r_t = u_{t+1} - u_t - step_penalty - price_level * cost + [EXPAND and u rose enough] * bonus

and HALT pays by the correctness of the answer at once. u is the row's accuracy or its mean probability of the right
answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trm_core.config.schema import DQNConfig
from trm_core.dqn.actions import Action


def step_reward(
    config: DQNConfig, before: Tensor, after: Tensor, action: Tensor, cost: Tensor, price: Tensor
) -> Tensor:
    """[B] reward of CONTINUE or EXPAND. before, after: u; cost: price units paid; price: the episode's level."""
    rise = after - before
    helped = (action == Action.EXPAND) & (rise >= config.reward_min_rise)
    return rise - config.reward_step_penalty - price * cost + helped * config.reward_expansion_bonus


def terminal_reward(config: DQNConfig, accuracy: Tensor) -> Tensor:
    """[B] reward of HALT: between incorrect and correct by the row's accuracy (0 or 1 for one label)."""
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
        n = len(rewards)
        if n == 0:
            return
        values = rewards.double()
        mean = float(values.mean())
        squares = float((values - mean).square().sum())
        delta, total = mean - self.mean, self.count + n
        self.squares += squares + delta * delta * self.count * n / total
        self.mean += delta * n / total
        self.count = total

    @property
    def value(self) -> float:
        """The divisor; 1 until there are enough rewards to know better."""
        if self.count < 100:
            return 1.0
        return max((self.squares / self.count) ** 0.5, 1e-3)
