"""The replay buffer of (state, action, reward, next state): a ring of states in which a transition is a pair of slots.

The trainer pushes one state per row and step. The action taken in it and the reward, known only a step later, are
filled in by `complete`, together with the slot of the next state; so every state is stored once. All operations work on
whole batches.

The states, nearly all of the bytes, lie on the Q-head's device. The few other bytes per slot lie in host memory
whatever the device: reading or writing some hundred places there costs 1 µs instead of a kernel launch. `ReplayIndex`
decides which slots are drawn; its module says what may be sampled, with what probability and weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trm_core.config.schema import DQNConfig
from trm_core.dqn.priorities import Places, Values
from trm_core.dqn.replay_index import ReplayIndex
from trm_core.errors import CheckpointError


@dataclass(frozen=True)
class Transitions:
    """n transitions."""

    slot: Tensor  # [n] int64
    state: Tensor  # [n, S] float32
    action: Tensor  # [n] int64
    reward: Tensor  # [n] extrinsic, as paid, not scaled
    intrinsic: Tensor  # [n] as paid, not scaled
    next_state: Tensor  # [n, S] float32; the state itself where done
    next_valid: Tensor  # [n, A] bool
    done: Tensor  # [n] bool
    weight: Tensor  # [n] float32 importance weights, at most 1


class ReplayBuffer:
    """Ring of `config.buffer_capacity` states of width S = `state_width`, with A = `num_actions` actions each.

    A buffer must hold two pushes: 2 B <= capacity. The training steps passed in must never decrease.
    """

    def __init__(self, config: DQNConfig, state_width: int, num_actions: int, device: torch.device) -> None:
        capacity = config.buffer_capacity
        self.device = device
        self.index = ReplayIndex(config)
        # By way of numpy, which asks for huge pages: gathering scattered rows of a large array takes 3/4 of the time.
        self.states = torch.from_numpy(np.zeros((capacity, state_width), dtype=config.buffer_dtype)).to(device)
        self.valid = np.zeros((capacity, num_actions), dtype=np.bool_)

    def __len__(self) -> int:
        """Complete transitions, ready or not."""
        return self.index.num_complete

    def push(self, states: Tensor, valid: Tensor, step: int) -> Tensor:
        """Store states [B, S] with their action masks [B, A] over the oldest ones; returns their slots [B], in host
        memory.
        """
        masks, slots, done = _host(valid), np.empty(len(states), np.int64), 0
        for start, end in self.index.push(len(states), step):
            rows = slice(done, done + end - start)
            self.states[start:end].copy_(states[rows])
            self.valid[start:end] = masks[rows]
            slots[rows] = np.arange(start, end)
            done = rows.stop
        return torch.from_numpy(slots)

    def complete(
        self,
        slots: Tensor,
        which: Tensor,
        actions: Tensor,
        rewards: Tensor,
        intrinsic: Tensor,
        next_slots: Tensor,
        done: Tensor,
    ) -> None:
        """Fill in what was done in the states at `slots` [B], for the rows where `which` [B] holds, whose slots must
        all differ. Everything is read in host memory; see `trm_core.devices.on_host`.

        next_slots: [B], pushed after `slots`; ignored where done.
        """
        rows = _host(which).nonzero()[0]
        if len(rows) == 0:
            return
        places = _host(slots)[rows]
        self.index.settle(places, _host(next_slots)[rows], _host(done)[rows])
        for name, column in (("action", actions), ("reward", rewards), ("intrinsic", intrinsic)):
            self.index.outcomes[name][places] = _host(column)[rows]

    def num_ready(self, step: int) -> int:
        """Transitions that may be sampled at training step `step`."""
        return self.index.num_ready(step)

    def sample(self, draws: Tensor, step: int, beta: float) -> Transitions:
        """One transition per draw [n] in [0, 1), not in the order of the draws; at least one must be ready. beta:
        exponent of the importance weights.
        """
        return self._read(*self.index.draw(_host(draws).astype(np.float64), step, beta))

    def update_priorities(self, slots: Tensor, td_errors: Tensor) -> None:
        """Take the TD errors [n] of the transitions at `slots` [n], in units of scaled rewards, of any sign.

        Call it before the next push: the TD error of a slot overwritten since would count for the new transition there
        (which stays unready while it is incomplete). Raises ValueError, and changes nothing, if a TD error is not
        finite, a slot is not in the ring, or the shapes differ.
        """
        places, sizes = _host(slots), np.abs(_host(td_errors).astype(np.float64))
        if places.shape != sizes.shape or places.ndim != 1:
            raise ValueError(f"TD errors of shape {sizes.shape} for slots of shape {places.shape}")
        if len(places) == 0:
            return
        if not np.isfinite(sizes.max()):
            raise ValueError(f"TD errors that are not finite: {sizes[~np.isfinite(sizes)][:4]}")
        low, high, filled = places.min(), places.max(), self.index.filled
        if low < 0 or high >= filled:
            raise ValueError(f"slots {low}..{high} are not all among the {filled} states stored")
        self.index.update(places, sizes)

    def read(self, slots: Tensor) -> Transitions:
        """The complete transitions at `slots` [n], with weights of 1."""
        return self._read(_host(slots), None)

    def sequences(self, slots: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The transitions that follow those at `slots` [n], which must be complete.

        Returns slots [n, length] and alive [n, length]: a sequence goes on while a transition is not done and the next
        one is complete. Place 0 is always alive; dead places repeat the last alive slot. What follows is younger, so it
        is in the ring and within max_age; whether it may be sampled by itself does not matter.
        """
        places, alive = self.index.follow(_host(slots), length)
        return self._tensor(places), self._tensor(alive)

    def ages(self, slots: Tensor) -> Tensor:
        """[n] training steps between the push of these slots and the newest push; in host memory."""
        born = self.index.born
        return torch.from_numpy(born[(self.index.head - 1) % self.index.capacity] - born[_host(slots)])

    def ends(self, slots: Tensor) -> Tensor:
        """[n] bool: whether these slots hold the last transitions of their episodes; in host memory."""
        return torch.from_numpy(self.index.done[_host(slots)])

    def check_valid(self) -> tuple[bool, str]:
        """Whether all invariants hold, and if not, which one. Reads everything: for diagnosis and tests."""
        why = self.index.fault()
        columns = self._columns()
        for name in ("states", "reward", "intrinsic"):
            if why is None and not bool(torch.isfinite(columns[name][: self.index.filled]).all()):
                why = f"{name} are not finite"
        return why is None, why or "ok"

    @property
    def nbytes(self) -> int:
        """Bytes of everything it holds, on the device and on the host."""
        return self.states.nbytes + self.valid.nbytes + self.index.nbytes

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Tensors of the slots ever written (contiguous, as safetensors requires; some are views), and numbers."""
        index = self.index
        numbers = {"head": index.head, "filled": index.filled, "young": index.young, "max_priority": index.max_priority}
        return {name: column[: index.filled].contiguous() for name, column in self._columns().items()}, numbers

    def load_state_dict(self, tensors: dict[str, Tensor], numbers: dict[str, float]) -> None:
        """Raises CheckpointError, and changes nothing, when the state was saved by a buffer of another shape."""
        head, filled, young = (int(numbers[name]) for name in ("head", "filled", "young"))
        capacity = self.index.capacity
        # A full ring goes on at its head, which fits no other capacity; one that is not yet full ends at its head.
        if not (0 <= head < capacity and 0 <= young <= filled and filled in (head, capacity)):
            raise CheckpointError(
                f"the saved replay holds {filled} states and continues at {head}, but this buffer has room for "
                f"{capacity}",
                hint="resume with the run's own dqn.buffer_capacity",
            )
        columns = self._columns()
        for name, mine in columns.items():
            saved = tensors[name]
            if saved.shape != (filled, *mine.shape[1:]) or saved.dtype != mine.dtype:
                raise CheckpointError(
                    f"saved replay '{name}' is {saved.dtype} {tuple(saved.shape)}, expected {mine.dtype} "
                    f"{(filled, *mine.shape[1:])}"
                )
        for name, mine in columns.items():
            mine[:filled] = tensors[name].to(mine.device)
        self.index.restored(head, filled, young, float(numbers["max_priority"]))

    def _columns(self) -> dict[str, Tensor]:
        """Every column, with all slots. They share their memory with the arrays."""
        host = {"valid": self.valid, **self.index.columns()}
        return {"states": self.states} | {name: torch.from_numpy(column) for name, column in host.items()}

    def _read(self, places: Places, weights: Values | None) -> Transitions:
        count = len(places)
        outcome = self.index.outcomes.take(places)
        following = outcome["next_slot"]
        both = self._tensor(np.concatenate([places, following]))
        states = self.states.index_select(0, both).float()
        return Transitions(
            slot=both[:count],
            state=states[:count],
            action=self._tensor(outcome["action"].astype(np.int64)),
            reward=self._tensor(outcome["reward"].copy()),
            intrinsic=self._tensor(outcome["intrinsic"].copy()),
            next_state=states[count:],
            next_valid=self._tensor(self.valid.take(following, 0)),
            done=self._tensor(outcome["done"].copy()),
            weight=self._tensor(np.ones(count, np.float32) if weights is None else weights.astype(np.float32)),
        )

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cpu":  # a call of `to` would cost as much as the rest
            return tensor
        return tensor.to(self.device, non_blocking=True)  # a copy of its own, which the array need not outlive


def _host(tensor: Tensor) -> NDArray[Any]:
    return tensor.numpy(force=True)
