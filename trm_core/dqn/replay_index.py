"""Which slots of the replay ring may be sampled, how they are drawn, and what their draws weigh.

**What may be sampled**: *ready* transitions, which are complete, at most `max_age` training steps old, and not excluded
by `td_error_threshold` (last |TD error| below it; a transition without a TD error yet is never excluded). States are
pushed in order of age, so those that expire are always at the tail of the ring.

**How** (P is the probability of one draw):

- uniform: P = 1 / ready. Weights are 1.
- prioritized (Schaul et al. 2016, proportional): P = p^alpha / sum p^alpha, p = |TD error| + 1e-6. A new transition
  gets the largest p ever seen (1 before the first), so that it is replayed soon. Weights are (ready * P)^-beta divided
  by the largest in the batch.
- recent_fraction f: the first round(f n) of the n draws are uniform over the ready transitions R among the youngest
  tenth of the states stored (over everything while none of those is ready). The batch then comes from the mixture
  Q = (1 - f') P + f' [in R] / |R|, f' = round(f n) / n, and the prioritized weights use Q in place of P (the balance
  heuristic of Veach and Guibas 1995): at beta = 1 they undo recency and priorities alike. Uniform replay keeps weights
  of 1: there the preference for recent transitions is what was asked for, and no beta says how far to undo it.

All of it is numpy in host memory, whatever the device of the states: choosing slots needs Python numbers at every step
and takes some dozens of calls on a few hundred numbers, each of which would be a kernel launch on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm_core.config.schema import DQNConfig
from trm_core.dqn.priorities import Places, SumTree, Values

Flags = NDArray[np.bool_]

PRIORITY_FLOOR = 1e-6  # so that a transition with a TD error of 0 can be drawn again
RECENT_PART = 10  # recent: the youngest tenth
# The fields of a transition lie side by side: reading one transition costs one cache miss, not one per column.
OUTCOME = np.dtype(
    {
        "names": ["next_slot", "reward", "intrinsic", "action", "done"],
        "formats": [np.int64, np.float32, np.float32, np.int8, np.bool_],
    },
    align=True,
)


class ReplayIndex:
    """The bookkeeping of a ring of `config.buffer_capacity` slots. Of its operations, only `restored` and `fault` cost
    more in a larger ring.
    """

    def __init__(self, config: DQNConfig) -> None:
        self.config = config
        self.prioritized = config.replay == "prioritized"
        self.capacity = capacity = config.buffer_capacity
        self.outcomes = np.zeros(capacity, dtype=OUTCOME)
        self.next_slots = self.outcomes["next_slot"]  # a view; own slot where done
        self.done = self.outcomes["done"]  # a view
        self.complete = np.zeros(capacity, dtype=np.bool_)
        self.born = np.zeros(capacity, dtype=np.int64)  # training step of the push
        self.mass = SumTree(capacity)  # p^alpha (uniform: 1) where ready, else 0
        # 1 where ready, to draw recent transitions by their rank; the same tree if all masses are 1.
        self.ready = SumTree(capacity) if self.prioritized and config.recent_fraction > 0.0 else self.mass
        self.head = 0  # next slot to write
        self.filled = 0  # slots ever written, at most capacity
        self.young = 0  # how many of the states pushed last are within max_age
        self.num_complete = 0
        self.num_usable = 0  # ready, some of which may have expired since the last call of `num_ready`
        self.max_priority = 1.0  # largest |TD error| + floor ever seen

    def push(self, rows: int, step: int) -> list[tuple[int, int]]:
        """Take the next slots for the states of `rows` rows; returns them as ranges."""
        # Otherwise this push could overwrite the states of the previous step, whose rewards are still to come.
        assert 2 * rows <= self.capacity, f"a ring of {self.capacity} states is too small for {rows} rows per step"
        assert self.filled == 0 or step >= self.born[self.head - 1], f"step {step} after {self.born[self.head - 1]}"
        pieces = list(self._pieces(self.head, rows))
        for start, end in pieces:
            self.num_complete -= int(np.count_nonzero(self.complete[start:end]))
            self.complete[start:end] = False
            self.born[start:end] = step
            self._forget(start, end)
        self.head = (self.head + rows) % self.capacity
        self.filled = min(self.filled + rows, self.capacity)
        self.young = min(self.young + rows, self.capacity)
        return pieces

    def settle(self, places: Places, next_slots: Places, done: Flags) -> None:
        """Mark the transitions at places [n], all different, as complete. next_slots [n]: ignored where done.

        A next slot must be younger than the slot itself: the ring overwrites older slots first, so no transition
        outlives its next state.
        """
        following = np.where(done, places, next_slots)
        both = np.concatenate([places, following])
        inside = both.min() >= 0 and both.max() < self.filled
        assert inside, f"{both} are not all among the {self.filled} states stored"
        ages = self._age(both)
        age, next_age = ages[: len(places)], ages[len(places) :]
        assert bool((next_age < age + done).all()), f"next slots {following} are not all younger than {places}"
        assert not self.complete[places].any(), f"some of the slots {places} are complete already"
        self.num_complete += len(places)
        self.complete[places] = True
        self.next_slots[places] = following
        self.done[places] = done
        usable = age < self.young
        self.num_usable += int(np.count_nonzero(usable))
        self._put(places, np.where(usable, self._largest_mass(), 0.0))

    def num_ready(self, step: int) -> int:
        """Transitions that may be sampled at training step `step`, which must never decrease."""
        self._expire(step)
        return self.num_usable

    def draw(self, fractions: Values, step: int, beta: float) -> tuple[Places, Values | None]:
        """One slot per fraction [n] in [0, 1), and their weights [n] (None: all 1). At least one must be ready.

        They come in the order of slots, recent draws first: searching for sorted targets, and reading what is found,
        costs half as much as for unsorted ones.
        """
        ready, count = self.num_ready(step), len(fractions)
        assert ready > 0, f"none of {self.num_complete} transitions may be sampled at step {step}"
        recent, first, among = 0, 0, 0
        if self.config.recent_fraction > 0.0:
            first, among = self._recent()
            recent = round(self.config.recent_fraction * count) if among else 0
        total = self.mass.total
        places = self.mass.find(np.sort(fractions[recent:]) * total)
        if recent:
            ranks = first + np.minimum(np.floor(fractions[:recent] * among), among - 1)
            places = np.concatenate([self.ready.find(np.sort(ranks % ready)), places])
        if not self.prioritized:
            return places, None
        chance = self.mass.values[places] / total
        if recent:
            share = recent / count
            chance = (1.0 - share) * chance + share * (self._age(places) < self._recent_states()) / among
        # (ready * P)^-beta divided by its largest: the number of ready transitions cancels.
        return places, (chance.min() / chance) ** beta

    def update(self, places: Places, td_errors: Values) -> None:
        """Take the |TD errors| of places [n], n > 0. If a place occurs twice, its last one counts."""
        threshold = self.config.td_error_threshold
        if not (self.prioritized or threshold > 0.0):
            return
        if self.prioritized:
            self.max_priority = max(self.max_priority, float(td_errors.max()) + PRIORITY_FLOOR)
        if threshold > 0.0:
            places, last = np.unique(places[::-1], return_index=True)  # the counter takes each once
            td_errors = td_errors[::-1][last]
            usable = self.complete[places] & (self._age(places) < self.young) & (td_errors >= threshold)
            self.num_usable += int(np.count_nonzero(usable)) - int(np.count_nonzero(self.mass.values[places]))
        else:
            usable = self.mass.values[places] > 0.0
        mass = (td_errors + PRIORITY_FLOOR) ** self.config.priority_alpha if self.prioritized else 1.0
        self._put(places, np.where(usable, mass, 0.0))

    def follow(self, places: Places, length: int) -> tuple[Places, Flags]:
        """The transitions that follow those at places [n], and which of them exist: see ReplayBuffer.sequences."""
        assert bool(self.complete[places].all()), f"incomplete: {places[~self.complete[places]]}"
        slots = np.empty((len(places), length), dtype=np.int64)
        alive = np.ones((len(places), length), dtype=np.bool_)
        slots[:, 0] = places
        for place in range(1, length):
            last = slots[:, place - 1]
            following = self.next_slots[last]
            alive[:, place] = alive[:, place - 1] & ~self.done[last] & self.complete[following]
            slots[:, place] = np.where(alive[:, place], following, last)
        return slots, alive

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns that are saved, with all slots; `restored` derives the rest from them."""
        return {
            **{name: self.outcomes[name] for name in ("next_slot", "reward", "intrinsic", "action", "done")},
            "complete": self.complete,
            "born": self.born,
            "mass": self.mass.values,
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all columns and sums."""
        trees = [self.mass] if self.ready is self.mass else [self.mass, self.ready]
        sums = sum(level.nbytes for tree in trees for level in tree.levels)
        return self.outcomes.nbytes + self.complete.nbytes + self.born.nbytes + sums

    def restored(self, head: int, filled: int, young: int, max_priority: float) -> None:
        """Make sums and counters fit after a saved state was loaded into the first `filled` entries of every column.
        What lies behind them is forgotten.
        """
        self.head, self.filled, self.young, self.max_priority = head, filled, young, max_priority
        self.complete[filled:] = False
        self.num_complete = int(np.count_nonzero(self.complete))
        mass = self.mass.values[:filled].copy()
        self.mass.load(mass)
        self.num_usable = int(np.count_nonzero(mass))
        if self.ready is not self.mass:
            self.ready.load((mass > 0.0).astype(np.float64))

    def fault(self) -> str | None:
        """The invariant that does not hold; None if all do. Reads everything."""
        capacity, filled = self.capacity, self.filled
        if not (0 <= self.head < capacity and 0 <= self.young <= filled <= capacity):
            return f"head {self.head}, young {self.young}, filled {filled}, capacity {capacity}"
        if filled < capacity and self.head != filled:
            return f"head {self.head} of a ring that holds {filled} of {capacity}"
        places = np.flatnonzero(self.complete)
        if len(places) != self.num_complete:
            return f"{len(places)} transitions are complete, the counter says {self.num_complete}"
        if len(places) and places[-1] >= filled:
            return f"slot {places[-1]} is complete, but only {filled} were written"
        if bool((np.diff(self.born[(self.head - filled + np.arange(filled)) % capacity]) < 0).any()):
            return "a state is older than one that was pushed before it"
        following = self.next_slots[places]
        inside = (following >= 0) & (following < capacity)
        wrong = ~self.done[places] & ~(inside & (self._age(following) < self._age(places)))
        if bool(wrong.any()):
            return f"the next slots of {places[wrong][:4]} are not younger: {following[wrong][:4]}"
        for name, tree in (("mass", self.mass), ("ready", self.ready)):
            why = tree.fault()
            if why is not None:
                return f"{name}: {why}"
        drawn = np.flatnonzero(self.mass.values)
        wrong = ~self.complete[drawn] | (self._age(drawn) >= self.young)
        if bool(wrong.any()):
            return f"incomplete or expired slots can be drawn: {drawn[wrong][:4]}"
        if len(drawn) != self.num_usable:
            return f"{len(drawn)} slots can be drawn, the counter says {self.num_usable}"
        if self.ready is not self.mass and not np.array_equal(self.ready.values, self.mass.values > 0.0):
            return "the slots that count as ready are not those that can be drawn"
        if not bool((self.mass.values <= self._largest_mass() * (1 + 1e-9)).all()):
            return f"a mass of {self.mass.values.max()} exceeds that of the largest priority, {self._largest_mass()}"
        return None

    def _largest_mass(self) -> float:
        return float(self.max_priority**self.config.priority_alpha) if self.prioritized else 1.0

    def _pieces(self, start: int, count: int) -> Iterator[tuple[int, int]]:
        """The slots start, start + 1, ... (start may be negative) as one or two ranges that do not wrap."""
        start %= self.capacity
        end = min(start + count, self.capacity)
        yield start, end
        if end - start < count:
            yield 0, count - (end - start)

    def _age(self, places: Places) -> Places:
        """[n] how many states were pushed after those at `places` [n]."""
        return (self.head - 1 - places) % self.capacity

    def _put(self, places: Places, mass: Values) -> None:
        self.mass.set(places, mass)
        if self.ready is not self.mass:
            self.ready.set(places, (mass > 0.0).astype(np.float64))

    def _forget(self, start: int, end: int) -> None:
        """Make these slots impossible to draw from now on."""
        self.num_usable -= int(np.count_nonzero(self.mass.values[start:end]))
        self.mass.clear(start, end)
        if self.ready is not self.mass:
            self.ready.clear(start, end)

    def _expire(self, step: int) -> None:
        """Forget the states that are now older than max_age, at the tail of the ring."""
        if self.config.max_age is None or self.young == 0:
            return
        limit = step - self.config.max_age
        for start, end in self._pieces(self.head - self.young, self.young):
            if self.born[start] >= limit:
                return
            expired = int(np.searchsorted(self.born[start:end], limit))
            self._forget(start, start + expired)
            self.young -= expired

    def _recent_states(self) -> int:
        """The youngest tenth, at least one."""
        return -(-self.filled // RECENT_PART)

    def _recent(self) -> tuple[int, int]:
        """Of the ready transitions in the order of slots: how many come before the recent ones (which may wrap around),
        and how many recent ones there are.
        """
        start = self.head - self._recent_states()
        first, last = self.ready.before(start % self.capacity), self.ready.before(self.head)
        return int(first), int(last - first if start >= 0 else self.ready.total - first + last)
