"""The replay ring against a list that keeps everything, and what may be sampled."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_core.dqn.replay import ReplayBuffer
from trm_core.errors import CheckpointError

WIDTH, ACTIONS = 2, 3


def make(capacity: int, max_age: int | None = None) -> ReplayBuffer:
    return ReplayBuffer(capacity, WIDTH, ACTIONS, torch.device("cpu"), max_age)


@dataclass
class Entry:
    number: int  # of the push; it is the state as well
    born: int
    valid: list[bool]
    done_with: tuple[int, float, int, bool] | None = None  # action, reward, number of the next entry, done


@dataclass
class Naive:
    """Everything ever pushed, in order."""

    capacity: int
    max_age: int | None
    entries: list[Entry] = field(default_factory=list)

    def ready(self, step: int) -> list[Entry]:
        young = [e for e in self.entries[-self.capacity :] if e.done_with is not None]
        return [e for e in young if self.max_age is None or e.born >= step - self.max_age]


def state_of(number: int) -> list[float]:
    return [float(number), float(-number)]


def compare(buffer: ReplayBuffer, naive: Naive, step: int) -> None:
    ready = naive.ready(step)
    slots = buffer.ready(step)
    assert sorted(slots.tolist()) == sorted(entry.number % naive.capacity for entry in ready)
    assert len(buffer) == len([e for e in naive.entries[-naive.capacity :] if e.done_with is not None])
    by_slot = {entry.number % naive.capacity: entry for entry in ready}
    got = buffer.read(slots)
    for place, slot in enumerate(slots.tolist()):
        entry = by_slot[slot]
        assert entry.done_with is not None
        action, reward, following, done = entry.done_with
        assert got.state[place].tolist() == state_of(entry.number)
        assert int(got.action[place]) == action
        assert float(got.reward[place]) == reward
        assert bool(got.done[place]) == done
        if not done:
            assert got.next_state[place].tolist() == state_of(following)
            assert got.next_valid[place].tolist() == naive.entries[following].valid


@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 4), extra=st.integers(0, 5), max_age=st.none() | st.integers(1, 8)
)
@settings(max_examples=40, deadline=None)
def test_equals_a_list_under_random_episodes(seed: int, rows: int, extra: int, max_age: int | None) -> None:
    """Rows go on for random lengths, as in training: a state is completed when its successor is pushed, or at once."""
    draw = random.Random(seed)
    capacity = 2 * rows + extra
    buffer, naive = make(capacity, max_age), Naive(capacity, max_age)
    pending: list[Entry | None] = [None] * rows
    slots = torch.full((rows,), -1)
    actions = torch.zeros(rows, dtype=torch.int64)
    for step in range(30):
        new = [
            Entry(len(naive.entries) + row, step, [draw.random() < 0.5 for _ in range(ACTIONS)]) for row in range(rows)
        ]
        naive.entries += new
        previous = slots
        states = torch.tensor([state_of(entry.number) for entry in new])
        slots = buffer.push(states, torch.tensor([entry.valid for entry in new]), step)
        assert slots.tolist() == [entry.number % capacity for entry in new]
        rewards = torch.tensor([float(draw.randrange(100)) for _ in range(rows)])
        settled = torch.tensor([entry is not None for entry in pending])
        buffer.complete(previous, settled, actions, rewards, slots, torch.zeros(rows, dtype=torch.bool))
        for row, entry in enumerate(pending):
            if entry is not None:
                entry.done_with = (int(actions[row]), float(rewards[row]), new[row].number, False)
        actions = torch.tensor([draw.randrange(ACTIONS) for _ in range(rows)])
        halting = actions == 1
        terminal = rewards + 0.5
        buffer.complete(slots, halting, actions, terminal, slots, halting)
        pending = list(new)
        for row in range(rows):
            if halting[row]:
                new[row].done_with = (1, float(terminal[row]), new[row].number, True)
                pending[row] = None
        compare(buffer, naive, step)
        if step == 17:
            tensors, numbers = buffer.state_dict()
            tensors = {name: value.clone() for name, value in tensors.items()}
            buffer = make(capacity, max_age)
            buffer.load_state_dict(tensors, dict(numbers))
            compare(buffer, naive, step)


def filled(complete: list[bool], max_age: int | None = None) -> ReplayBuffer:
    """One state per push, at steps 0, 1, ..."""
    buffer = make(len(complete), max_age)
    for step, here in enumerate(complete):
        slot = buffer.push(torch.tensor([state_of(step)]), torch.ones(1, ACTIONS, dtype=torch.bool), step)
        buffer.complete(slot, torch.tensor([here]), torch.tensor([0]), torch.tensor([1.0]), slot, torch.tensor([True]))
    return buffer


def test_sampling_is_uniform_over_what_is_complete() -> None:
    complete = [True, False, True, True, False]
    buffer = filled(complete)
    slots = buffer.sample(torch.linspace(0, 1 - 1e-7, 3001), 5).slot
    counts = torch.bincount(slots, minlength=5)
    assert (counts > 0).tolist() == complete
    assert counts[[0, 2, 3]].tolist() == pytest.approx([1000] * 3, abs=2)
    # A draw that rounds to 1 in float32 still gives a transition.
    assert buffer.sample(torch.tensor([1.0]), 5).slot.tolist() == [3]


def test_old_transitions_are_not_sampled() -> None:
    buffer = filled([True] * 6, max_age=2)
    draws = torch.linspace(0, 0.999, 50)
    assert set(buffer.sample(draws, 5).slot.tolist()) == {3, 4, 5}
    assert set(buffer.sample(draws, 7).slot.tolist()) == {5}
    assert buffer.ready(8).tolist() == []


def test_states_of_another_shape_are_refused() -> None:
    tensors, numbers = filled([True] * 6).state_dict()
    with pytest.raises(CheckpointError, match="room for 4"):
        make(4).load_state_dict(tensors, numbers)
    with pytest.raises(CheckpointError, match="'states'"):
        ReplayBuffer(6, WIDTH + 1, ACTIONS, torch.device("cpu"), None).load_state_dict(tensors, numbers)
    with pytest.raises(CheckpointError):
        make(6).load_state_dict(tensors, {"head": 9, "filled": 6})
