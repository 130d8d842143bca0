"""Replay of (state, action, reward, next state): a ring of states in which a transition is a pair of slots.

The trainer pushes one state per row and step. The action taken in it and the reward, known only a step later, are
filled in by `complete`, together with the slot of the next state; so every state is stored once. A pair never
outlives its second half: the next state is always younger and overwritten later. All operations are over whole batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trm_core.errors import CheckpointError


@dataclass(frozen=True)
class Transitions:
    """A sample of n transitions."""

    slot: Tensor  # [n] int64
    state: Tensor  # [n, S] float32
    action: Tensor  # [n] int64
    reward: Tensor  # [n] as paid, not scaled
    next_state: Tensor  # [n, S] float32; arbitrary where done
    next_valid: Tensor  # [n, A] bool
    done: Tensor  # [n] bool


class ReplayBuffer:
    """Ring of `capacity` states of width S, sampled uniformly over complete transitions."""

    def __init__(
        self, capacity: int, state_width: int, num_actions: int, device: torch.device, max_age: int | None
    ) -> None:
        self.capacity = capacity
        self.max_age = max_age
        self.tensors: dict[str, Tensor] = {
            "states": torch.zeros(capacity, state_width, dtype=torch.float32, device=device),
            "valid": torch.zeros(capacity, num_actions, dtype=torch.bool, device=device),
            "actions": torch.zeros(capacity, dtype=torch.int8, device=device),
            "rewards": torch.zeros(capacity, dtype=torch.float32, device=device),
            "next_slots": torch.full((capacity,), -1, dtype=torch.int64, device=device),
            "done": torch.zeros(capacity, dtype=torch.bool, device=device),
            "complete": torch.zeros(capacity, dtype=torch.bool, device=device),
            "born": torch.full((capacity,), -1, dtype=torch.int64, device=device),
        }
        self.head = 0  # next slot to write
        self.filled = 0  # slots ever written, at most capacity

    def push(self, states: Tensor, valid: Tensor, step: int) -> Tensor:
        """Store states [B, S] with their action masks [B, A]; returns their slots [B]."""
        rows = len(states)
        t = self.tensors
        slots = (torch.arange(rows, device=states.device) + self.head) % self.capacity
        t["states"][slots] = states.to(t["states"].dtype)
        t["valid"][slots] = valid
        t["complete"][slots] = False
        t["born"][slots] = step
        self.head = (self.head + rows) % self.capacity
        self.filled = min(self.filled + rows, self.capacity)
        return slots

    def complete(
        self, slots: Tensor, which: Tensor, actions: Tensor, rewards: Tensor, next_slots: Tensor, done: Tensor
    ) -> None:
        """Fill in what was done in the states at `slots` [B], for the rows where `which` [B] holds."""
        t = self.tensors
        rows = which.nonzero().squeeze(1)
        slots = slots[rows]
        t["actions"][slots] = actions[rows].to(torch.int8)
        t["rewards"][slots] = rewards[rows]
        t["next_slots"][slots] = next_slots[rows]
        t["done"][slots] = done[rows]
        t["complete"][slots] = True

    def ready(self, step: int) -> Tensor:
        """[n] slots of the transitions that may be sampled at training step `step`."""
        usable = self.tensors["complete"][: self.filled]
        if self.max_age is not None:
            usable = usable & (self.tensors["born"][: self.filled] >= step - self.max_age)
        return usable.nonzero().squeeze(1)

    def __len__(self) -> int:
        return int(self.tensors["complete"].sum())

    def sample(self, draws: Tensor, step: int) -> Transitions:
        """One transition per draw [n] in [0, 1), uniformly over those that are ready."""
        ready = self.ready(step)
        return self.read(ready[(draws * len(ready)).long().clamp(max=len(ready) - 1)])

    def read(self, slots: Tensor) -> Transitions:
        t = self.tensors
        following = t["next_slots"][slots].clamp(min=0)
        return Transitions(
            slot=slots,
            state=t["states"][slots].float(),
            action=t["actions"][slots].long(),
            reward=t["rewards"][slots],
            next_state=t["states"][following].float(),
            next_valid=t["valid"][following],
            done=t["done"][slots],
        )

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Tensors (only the slots ever written) and numbers."""
        return {k: v[: self.filled] for k, v in self.tensors.items()}, {"head": self.head, "filled": self.filled}

    def load_state_dict(self, tensors: dict[str, Tensor], numbers: dict[str, int]) -> None:
        """Raises CheckpointError when the state was saved by a buffer of another shape."""
        head, filled = numbers["head"], numbers["filled"]
        if not (0 <= head < self.capacity and 0 <= filled <= self.capacity):
            raise CheckpointError(
                f"the saved replay holds {filled} states, this buffer has room for {self.capacity}",
                hint="resume with the dqn.buffer_capacity of the run",
            )
        for name, mine in self.tensors.items():
            saved = tensors[name]
            if saved.shape != (filled, *mine.shape[1:]) or saved.dtype != mine.dtype:
                raise CheckpointError(
                    f"saved replay '{name}' is {saved.dtype} {tuple(saved.shape)}, expected {mine.dtype} "
                    f"{(filled, *mine.shape[1:])}"
                )
            mine[:filled] = saved.to(mine.device)
        self.head, self.filled = head, filled
