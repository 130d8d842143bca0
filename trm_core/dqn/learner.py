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
    """Replayed transitions with their target values: n of them, or n runs of L consecutive ones ([n, L])."""

    slot: Tensor  # [n] or [n, L] int64
    state: Tensor  # [n, S] or [n, L, S]
    action: Tensor  # [n] or [n, L] int64
    target: Tensor  # [n] or [n, L]
    weight: Tensor  # [n] or [n, L] importance weights; 0 past the end of an episode

    def without_rows(self) -> ReplayedTargets:
        """No transitions, in the same form: the value net still takes part in the step."""
        return ReplayedTargets(self.slot[:0], self.state[:0], self.action[:0], self.target[:0], self.weight[:0])


def no_transitions(state_width: int, length: int, device: torch.device) -> ReplayedTargets:
    """The empty batch that is replayed until there are enough transitions: see `without_rows`."""
    rows = (0,) if length == 1 else (0, length)
    whole = torch.zeros(rows, dtype=torch.int64, device=device)
    parts = torch.zeros(rows, device=device)
    return ReplayedTargets(whole, torch.zeros(*rows, state_width, device=device), whole, parts, parts)


@dataclass(frozen=True)
class RewardDivisors:
    """What rewards are divided by when they are sampled: the running scales of both kinds."""

    extrinsic: float
    intrinsic: float  # already divided by the curiosity weight


@torch.no_grad()
def td_targets(
    online: QHead, target: QHead, batch: Transitions, gamma: float, divisors: RewardDivisors
) -> ReplayedTargets:
    """r + gamma * Q_target(s', argmax over valid a of Q_online(s', a)), and r alone where done; r in scaled units."""
    value = _bootstrapped(batch, gamma, divisors, online.values(batch.next_state), target.values(batch.next_state))
    return ReplayedTargets(batch.slot, batch.state, batch.action, value, batch.weight)


@torch.no_grad()
def sequence_targets(
    online: QHead, target: QHead, batch: Transitions, alive: Tensor, gamma: float, divisors: RewardDivisors
) -> ReplayedTargets:
    """Targets of n runs of L transitions for a recurrent Q-head; `batch` holds n * L transitions, run after run.

    alive [n, L] bool: false past the end of a run. Each run starts from the head's memory as it was stored ("stored
    state" of Kapturowski et al., 2019), which both networks then recompute along the run.
    """
    runs = alive.shape
    states = batch.state.unflatten(0, runs)
    following = batch.next_state
    values = _bootstrapped(
        batch,
        gamma,
        divisors,
        online.values(with_memory(following, memories(online, states)[1].flatten(0, 1))),
        target.values(with_memory(following, memories(target, states)[1].flatten(0, 1))),
    )
    weight = batch.weight.unflatten(0, runs) * alive
    return ReplayedTargets(
        batch.slot.unflatten(0, runs), states, batch.action.unflatten(0, runs), values.unflatten(0, runs), weight
    )


def _bootstrapped(
    batch: Transitions, gamma: float, divisors: RewardDivisors, next_online: Tensor, next_target: Tensor
) -> Tensor:
    future = next_target.gather(1, greedy(next_online, batch.next_valid)[:, None]).squeeze(1)
    reward = batch.reward / divisors.extrinsic + batch.intrinsic / divisors.intrinsic
    return reward + gamma * torch.where(batch.done, 0.0, future)


def with_memory(states: Tensor, memory: Tensor) -> Tensor:
    """States [n, S] with another recurrent memory [n, width]."""
    return torch.cat([memory, states[:, memory.shape[1] :]], 1)


def memories(head: QHead, states: Tensor) -> tuple[Tensor, Tensor]:
    """The values [n, L, A] along runs of states [n, L, S], and the head's memory after each [n, L, width]."""
    memory = states[:, 0, : head.recurrent_width]
    values, after = [], []
    for place in range(states.shape[1]):
        value, memory = head.read(with_memory(states[:, place], memory))
        values.append(value)
        after.append(memory)
    return torch.stack(values, 1), torch.stack(after, 1)


def td_loss(q_head: QHead, replayed: ReplayedTargets, kind: str) -> tuple[Tensor, Tensor]:
    """Loss per transition (with gradient to the value net) and TD errors (without), in the shape of the targets."""
    states = replayed.state
    q_values = q_head.values(states) if states.dim() == 2 else memories(q_head, states)[0]
    predicted = q_values.gather(-1, replayed.action[..., None]).squeeze(-1)
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

    def due(self, step: int) -> bool:
        """Whether the copy moves after `step` steps."""
        return self.tau is not None or step % self.every == 0

    @torch.no_grad()
    def follow(self, online: QHead, step: int) -> None:
        """Move towards `online`, if that is due."""
        if not self.due(step):
            return
        mine: list[Tensor] = list(self.head.parameters())
        theirs: list[Tensor] = list(online.parameters())
        if self.tau is not None:
            torch._foreach_lerp_(mine, theirs, self.tau)
        else:
            torch._foreach_copy_(mine, theirs)

    @torch.no_grad()
    def distance(self, online: QHead) -> Tensor:
        """Scalar: norm of the difference of the weights, over the norm of the weights of `online`."""
        theirs: list[Tensor] = list(online.parameters())
        away = torch._foreach_norm(torch._foreach_sub(list(self.head.parameters()), theirs))
        return torch.stack(away).norm() / torch.stack(torch._foreach_norm(theirs)).norm().clamp(min=1e-12)
