"""Double DQN (van Hasselt et al., 2016): targets without gradient, the TD loss with."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trm_core.config.schema import DQNConfig
from trm_core.dqn.actions import greedy
from trm_core.dqn.replay import Transitions
from trm_core.model.q_head import QHead


@dataclass(frozen=True)
class ReplayedTargets:
    """Replayed transitions with the values they should have."""

    state: Tensor  # [n, S]
    action: Tensor  # [n] int64
    target: Tensor  # [n]
    weight: Tensor  # [n] importance weights


@torch.no_grad()
def td_targets(online: QHead, target: QHead, batch: Transitions, gamma: float, reward_scale: float) -> ReplayedTargets:
    """r / scale + gamma * Q_target(s', argmax over valid a of Q_online(s', a)), and r / scale alone where done."""
    best = greedy(online.values(batch.next_state), batch.next_valid)
    future = target.values(batch.next_state).gather(1, best[:, None]).squeeze(1)
    value = batch.reward / reward_scale + gamma * torch.where(batch.done, 0.0, future)
    return ReplayedTargets(batch.state, batch.action, value, torch.ones_like(value))


def td_loss(q_head: QHead, replayed: ReplayedTargets, kind: str) -> tuple[Tensor, Tensor]:
    """Loss per transition [n] (with gradient to the value net) and TD errors [n] (without)."""
    predicted = q_head.values(replayed.state).gather(1, replayed.action[:, None]).squeeze(1)
    if kind == "huber":
        loss = F.huber_loss(predicted, replayed.target, reduction="none")
    else:
        loss = F.mse_loss(predicted, replayed.target, reduction="none")
    return loss, (predicted - replayed.target).detach()


class TargetNetwork:
    """A copy of the Q-head that follows it: a hard copy every n steps, or a little at every step (Polyak)."""

    def __init__(self, online: QHead, config: DQNConfig) -> None:
        self.head = copy.deepcopy(online).requires_grad_(False)
        self.every, self.tau = config.target_update_freq, config.target_tau

    @torch.no_grad()
    def follow(self, online: QHead, step: int) -> None:
        mine: list[Tensor] = list(self.head.parameters())
        theirs: list[Tensor] = list(online.parameters())
        if self.tau is not None:
            torch._foreach_lerp_(mine, theirs, self.tau)
        elif step % self.every == 0:
            torch._foreach_copy_(mine, theirs)


def epsilon_at(config: DQNConfig, step: int) -> float:
    """Exploration rate at a global step: linear from start to end over epsilon_decay steps."""
    progress = min(step / config.epsilon_decay, 1.0)
    return config.epsilon_start + (config.epsilon_end - config.epsilon_start) * progress
