"""The replay ring against a list that keeps everything: what may be sampled, with what chance and weight."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_core.config.schema import DQNConfig
from trm_core.dqn.replay import ReplayBuffer, Transitions
from trm_core.dqn.replay_index import PRIORITY_FLOOR
from trm_core.errors import CheckpointError

WIDTH, ACTIONS = 2, 3
CPU = torch.device("cpu")


def settings_of(capacity: int, **changes: Any) -> DQNConfig:
    return DQNConfig(**{"buffer_capacity": capacity, "buffer_min_size": 1, **changes})


def make(capacity: int, **changes: Any) -> ReplayBuffer:
    return ReplayBuffer(settings_of(capacity, **changes), WIDTH, ACTIONS, CPU)


@dataclass
class Outcome:
    action: int
    reward: float
    intrinsic: float
    following: int  # number of the next entry
    done: bool
    priority: float
    aside: bool = False  # last |TD error| below the threshold


@dataclass
class Entry:
    number: int  # of the push; it is the state as well
    born: int
    valid: list[bool]
    outcome: Outcome | None = None


@dataclass
class Naive:
    """Everything ever pushed, in order, and the rules as they are told."""

    config: DQNConfig
    entries: list[Entry] = field(default_factory=list)
    largest: float = 1.0

    def kept(self) -> list[Entry]:
        return self.entries[-self.config.buffer_capacity :]

    def ready(self, step: int) -> list[tuple[Entry, Outcome]]:
        age = self.config.max_age
        return [
            (entry, entry.outcome)
            for entry in self.kept()
            if entry.outcome is not None and not entry.outcome.aside and (age is None or step - entry.born <= age)
        ]

    def chances(self, step: int) -> dict[int, float]:
        """By number; without the recent draws."""
        alpha = self.config.priority_alpha if self.config.replay == "prioritized" else 0.0
        mass = {entry.number: outcome.priority**alpha for entry, outcome in self.ready(step)}
        return {number: value / sum(mass.values()) for number, value in mass.items()}

    def recent(self, step: int) -> list[int]:
        youngest = self.kept()[-math.ceil(len(self.kept()) / 10) :]
        return [entry.number for entry, _ in self.ready(step) if entry in youngest]

    def update(self, number: int, td_error: float) -> None:
        outcome = self.entries[number].outcome
        self.largest = max(self.largest, abs(td_error) + PRIORITY_FLOOR)
        if outcome is not None:
            outcome.priority = abs(td_error) + PRIORITY_FLOOR
            outcome.aside = abs(td_error) < self.config.td_error_threshold

    def sequence(self, number: int, length: int) -> list[int]:
        """Numbers of the transitions from `number` on."""
        found = [number]
        while len(found) < length:
            outcome = self.entries[found[-1]].outcome
            assert outcome is not None
            if outcome.done or self.entries[outcome.following].outcome is None:
                break
            found.append(outcome.following)
        return found


def state_of(number: int) -> list[float]:
    return [float(number), float(-number)]


def same(got: Transitions, naive: Naive) -> None:
    """Every column of what was read is that of its entry."""
    capacity = naive.config.buffer_capacity
    assert [got.state.dtype, got.next_state.dtype, got.weight.dtype] == [torch.float32] * 3
    assert [got.slot.dtype, got.action.dtype] == [torch.int64] * 2
    for place, slot in enumerate(got.slot.tolist()):
        entry = next(entry for entry in naive.kept() if entry.number % capacity == slot)
        outcome = entry.outcome
        assert outcome is not None
        assert got.state[place].tolist() == state_of(entry.number)
        assert int(got.action[place]) == outcome.action
        assert float(got.reward[place]) == outcome.reward
        assert float(got.intrinsic[place]) == outcome.intrinsic
        assert bool(got.done[place]) == outcome.done
        if not outcome.done:
            assert got.next_state[place].tolist() == state_of(outcome.following)
            assert got.next_valid[place].tolist() == naive.entries[outcome.following].valid


def compare(buffer: ReplayBuffer, naive: Naive, step: int, draw: random.Random) -> None:
    capacity = naive.config.buffer_capacity
    assert buffer.check_valid() == (True, "ok")
    assert len(buffer) == sum(entry.outcome is not None for entry in naive.kept())
    chances = naive.chances(step)
    assert buffer.num_ready(step) == len(chances)
    mass = buffer.index.mass.values
    assert {number % capacity for number in chances} == set(np.flatnonzero(mass).tolist())
    assert [mass[number % capacity] / mass.sum() for number in chances] == pytest.approx(list(chances.values()))
    complete = [entry.number for entry in naive.kept() if entry.outcome is not None]
    if complete:
        chosen = [draw.choice(complete) for _ in range(6)]
        read = buffer.read(torch.tensor([number % capacity for number in chosen]))
        same(read, naive)
        assert read.weight.tolist() == [1.0] * 6
        slots, alive = buffer.sequences(read.slot, 4)
        for row, number in enumerate(chosen):
            expected = naive.sequence(number, 4)
            assert alive[row].tolist() == [place < len(expected) for place in range(4)]
            expected += [expected[-1]] * (4 - len(expected))
            assert slots[row].tolist() == [number % capacity for number in expected]
    if not chances:
        return
    beta = draw.random()
    batch = buffer.sample(torch.tensor([draw.random() for _ in range(8)]), step, beta)
    same(batch, naive)
    number_at = {number % capacity: number for number in chances}
    numbers = [number_at[slot] for slot in batch.slot.tolist()]
    if naive.config.replay == "uniform":
        assert batch.weight.tolist() == [1.0] * 8
        return
    recent = naive.recent(step)
    share = round(8 * naive.config.recent_fraction) / 8 if recent else 0.0
    mixed = [(1 - share) * chances[number] + (share / len(recent) if number in recent else 0.0) for number in numbers]
    weights = np.array([(len(chances) * chance) ** -beta for chance in mixed])
    assert batch.weight.tolist() == pytest.approx((weights / weights.max()).tolist(), rel=1e-5)


CONFIGS = st.fixed_dictionaries(
    {
        "replay": st.sampled_from(["uniform", "prioritized"]),
        "buffer_dtype": st.sampled_from(["float32", "float16"]),
        "max_age": st.none() | st.integers(1, 8),
        "recent_fraction": st.sampled_from([0.0, 0.25, 1.0]),
        "td_error_threshold": st.sampled_from([0.0, 0.5]),
        "priority_alpha": st.sampled_from([0.0, 0.6, 1.0]),
    }
)


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 4), extra=st.integers(0, 30), config=CONFIGS)
@settings(max_examples=40, deadline=None)
def test_equals_a_list_under_random_episodes(seed: int, rows: int, extra: int, config: dict[str, Any]) -> None:
    """Rows go on for random lengths, as in training: a state is completed when its successor is pushed, or at once."""
    draw = random.Random(seed)
    capacity = 2 * rows + extra
    buffer, naive = make(capacity, **config), Naive(settings_of(capacity, **config))
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
        intrinsic = torch.tensor([float(draw.randrange(100)) for _ in range(rows)])
        # Of some rows nothing is known (no label): what was done there never becomes a transition.
        settled = torch.tensor([entry is not None and draw.random() < 0.9 for entry in pending])
        nobody = torch.zeros(rows, dtype=torch.bool)
        buffer.complete(previous, settled, actions, rewards, intrinsic, slots, nobody)
        for row, entry in enumerate(pending):
            if entry is not None and settled[row]:
                entry.outcome = Outcome(
                    int(actions[row]), float(rewards[row]), float(intrinsic[row]), new[row].number, False, naive.largest
                )
        actions = torch.tensor([draw.randrange(ACTIONS) for _ in range(rows)])
        halting = actions == 1
        terminal = rewards + 0.5
        anywhere = torch.full((rows,), draw.choice([-1, 0, capacity]))  # next slots mean nothing where done
        buffer.complete(slots, halting, actions, terminal, intrinsic, anywhere, halting)
        pending = list(new)
        for row in range(rows):
            if halting[row]:
                outcome = Outcome(1, float(terminal[row]), float(intrinsic[row]), new[row].number, True, naive.largest)
                new[row].outcome = outcome
                pending[row] = None
        compare(buffer, naive, step, draw)
        # TD errors of what was sampled, and of anything else (twice, expired, incomplete).
        numbers = [draw.choice(naive.kept()).number for _ in range(4)]
        errors = [draw.choice([-1, 1]) * draw.choice([0.0, 0.25, 0.5, 3.0]) for _ in numbers]
        if config["replay"] == "prioritized" or config["td_error_threshold"] > 0:
            for number, error in zip(numbers, errors, strict=True):
                naive.update(number, error)
        buffer.update_priorities(torch.tensor([number % capacity for number in numbers]), torch.tensor(errors))
        compare(buffer, naive, step, draw)
        if step == 17:
            buffer = reloaded(buffer)
            compare(buffer, naive, step, draw)


def reloaded(buffer: ReplayBuffer) -> ReplayBuffer:
    """Its state in a buffer that was used for something else. The same draws must give the same, bit for bit."""
    tensors, numbers = buffer.state_dict()
    tensors = safetensors.torch.load(safetensors.torch.save(tensors))
    other = ReplayBuffer(buffer.index.config, WIDTH, ACTIONS, CPU)
    for step in range(buffer.index.capacity + 1):
        one(other, step, done=True)
    other.load_state_dict(tensors, dict(numbers))
    again = other.state_dict()
    assert again[1] == numbers
    assert all(torch.equal(again[0][name], value) for name, value in tensors.items())
    if buffer.num_ready(17):
        draws = torch.rand(64, generator=torch.Generator().manual_seed(0))
        mine, theirs = buffer.sample(draws, 17, 0.7), other.sample(draws, 17, 0.7)
        assert torch.equal(mine.slot, theirs.slot)
        assert torch.equal(mine.weight, theirs.weight)
    return other


def one(buffer: ReplayBuffer, step: int, done: bool) -> None:
    """One state per push, completed at once where `done`."""
    slot = buffer.push(torch.tensor([state_of(step)]), torch.ones(1, ACTIONS, dtype=torch.bool), step)
    zero = torch.zeros(1)
    buffer.complete(slot, torch.tensor([done]), torch.tensor([0]), zero + 1, zero, slot, torch.tensor([True]))


def filled(complete: list[bool], **changes: Any) -> ReplayBuffer:
    buffer = make(len(complete), **changes)
    for step, here in enumerate(complete):
        one(buffer, step, here)
    return buffer


def counts(buffer: ReplayBuffer, count: int, step: int) -> torch.Tensor:
    """Of stratified draws, so that each count is at most about one off its expectation."""
    draws = torch.from_numpy(np.linspace(0, 1, count, endpoint=False))
    return torch.bincount(buffer.sample(draws, step, 0.5).slot, minlength=buffer.index.capacity)


def test_sampling_is_uniform_over_what_is_complete() -> None:
    complete = [True, False, True, True, False]
    buffer = filled(complete)
    found = counts(buffer, 3000, 5)
    assert (found > 0).tolist() == complete
    assert found[[0, 2, 3]].tolist() == pytest.approx([1000] * 3, abs=1)
    # A draw that rounds to 1 in float32 still gives a transition.
    assert buffer.sample(torch.tensor([0.0, 0.99999994, 1.0]), 5, 0.5).slot.tolist() == [0, 3, 3]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_prioritized_sampling_has_the_exact_chances(alpha: float) -> None:
    size, draws = 300, 200_000
    buffer = filled([place % 7 != 3 for place in range(size)], replay="prioritized", priority_alpha=alpha)
    slots = torch.from_numpy(np.flatnonzero(buffer.index.complete))
    td_errors = torch.linspace(-4, 4, len(slots)) ** 3
    buffer.update_priorities(slots, td_errors)
    mass = (td_errors.double().abs() + PRIORITY_FLOOR) ** alpha
    expected = torch.zeros(size, dtype=torch.float64).index_copy(0, slots, mass / mass.sum() * draws)
    assert (counts(buffer, draws, size) - expected).abs().max() <= 1.0


def test_a_new_transition_gets_the_largest_priority_seen() -> None:
    buffer = filled([True] * 20, replay="prioritized", priority_alpha=1.0)
    buffer.update_priorities(torch.arange(20), torch.full((20,), 0.5))
    buffer.update_priorities(torch.tensor([4]), torch.tensor([-8.0]))
    buffer.update_priorities(torch.tensor([4]), torch.tensor([0.5]))
    one(buffer, 20, True)
    found = counts(buffer, 35_000, 20)  # 19 of 0.5 and one of 8
    assert found[0] == pytest.approx(16_000, abs=2)
    assert found[1:].tolist() == pytest.approx([1000] * 19, abs=2)


def test_importance_weights_make_expectations_those_of_uniform_sampling() -> None:
    """At beta = 1, with the recent draws as well: a mean over the mixture, weighted, is the plain mean."""
    size = 40
    buffer = filled([True] * size, replay="prioritized", recent_fraction=0.5)
    buffer.update_priorities(torch.arange(size), torch.linspace(0.1, 3, size))
    values = torch.linspace(0, 1, size) ** 2
    half = np.linspace(0, 1, 50_000, endpoint=False)
    batch = buffer.sample(torch.from_numpy(np.concatenate([half, half])), size, 1.0)
    assert float(batch.weight.max()) == 1.0
    weighted = (values[batch.slot] * batch.weight).sum() / batch.weight.sum()
    assert float(weighted) == pytest.approx(float(values.mean()), rel=1e-3)
    flat = buffer.sample(torch.from_numpy(half), size, 0.0)
    assert flat.weight.tolist() == [1.0] * len(half)


@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
@pytest.mark.parametrize("pushes", [1, 7, 40, 43, 44, 79])
def test_recent_draws_come_from_the_youngest_tenth(kind: str, pushes: int) -> None:
    """Before the ring is full, when it is, and where the tenth wraps around its end."""
    buffer = make(40, replay=kind, recent_fraction=0.25)
    for step in range(pushes):
        one(buffer, step, done=step % 3 != 1)
    youngest = range(pushes - -(-min(pushes, 40) // 10), pushes)
    ready = {step % 40 for step in youngest if step % 3 != 1}
    draws = torch.cat([torch.linspace(0, 0.9999, 300), torch.linspace(0, 0.9999, 900)])
    slots = buffer.sample(draws, pushes, 0.4).slot
    found = torch.bincount(slots[:300], minlength=40)
    assert set(found.nonzero().flatten().tolist()) == ready
    assert found[list(ready)].tolist() == pytest.approx([300 / len(ready)] * len(ready), abs=1.1)
    assert set(slots[300:].tolist()) == set(np.flatnonzero(buffer.index.complete).tolist())


def test_a_recent_draw_that_rounds_to_one_is_the_youngest() -> None:
    buffer = filled([True] * 20, recent_fraction=1.0)
    draws = torch.tensor([0.0, 0.49, 0.5, 0.99999994, 1.0])
    assert buffer.sample(draws, 20, 0.4).slot.tolist() == [18, 18, 19, 19, 19]


def test_recent_draws_fall_back_when_nothing_recent_is_ready() -> None:
    buffer = filled([True] * 17 + [False] * 3, recent_fraction=1.0)
    assert counts(buffer, 1700, 20).tolist() == pytest.approx([100] * 17 + [0] * 3, abs=1)


def test_old_transitions_are_not_sampled() -> None:
    buffer = filled([True] * 6, max_age=2)
    draws = torch.linspace(0, 0.999, 50)
    assert set(buffer.sample(draws, 5, 0.4).slot.tolist()) == {3, 4, 5}
    assert set(buffer.sample(draws, 7, 0.4).slot.tolist()) == {5}
    assert buffer.num_ready(8) == 0
    assert len(buffer) == 6
    buffer.update_priorities(torch.arange(6), torch.ones(6))
    assert buffer.num_ready(8) == 0, "a TD error does not make it young"
    with pytest.raises(AssertionError, match="none of 6"):
        buffer.sample(draws, 8, 0.4)


def test_what_expired_while_it_was_pending_is_not_sampled() -> None:
    buffer = filled([False] * 3 + [True] * 3, max_age=2)
    assert buffer.num_ready(6) == 2
    zero = torch.zeros(1)
    buffer.complete(torch.tensor([1]), torch.tensor([True]), zero, zero, zero, torch.tensor([4]), torch.tensor([False]))
    assert buffer.num_ready(6) == 2
    assert len(buffer) == 4
    one(buffer, 6, True)
    assert buffer.index.young == 3, "what has expired is not looked at again"
    assert buffer.check_valid() == (True, "ok")


def test_age_is_counted_in_steps_to_the_newest_push() -> None:
    buffer = make(4)
    for step in (3, 3, 8, 8, 15):
        one(buffer, step, True)
    assert buffer.ages(torch.tensor([0, 1, 2, 3])).tolist() == [0, 12, 7, 7]


def test_the_last_transition_of_an_episode_is_told() -> None:
    buffer, no = make(4), torch.zeros(1)
    for step in (1, 2):
        one(buffer, step, False)
    for slot, done in ((0, False), (1, True)):
        places = torch.tensor([slot]), torch.tensor([True])
        buffer.complete(*places, no.long(), no, no, torch.tensor([1]), torch.tensor([done]))
    assert buffer.ends(torch.tensor([1, 0, 1])).tolist() == [True, False, True]


def test_what_follows_something_incomplete_is_not_asked_for() -> None:
    buffer = filled([True, False, True])
    with pytest.raises(AssertionError, match="incomplete"):
        buffer.sequences(torch.tensor([0, 1]), 2)


def test_a_small_td_error_puts_a_transition_aside_until_it_grows() -> None:
    buffer = filled([True] * 4, td_error_threshold=0.1, replay="prioritized")
    buffer.update_priorities(torch.tensor([0, 1, 1]), torch.tensor([-0.1, 1.0, 0.05]))
    assert buffer.num_ready(4) == 3
    assert counts(buffer, 1000, 4)[1] == 0
    buffer.update_priorities(torch.tensor([1]), torch.tensor([0.2]))
    assert buffer.num_ready(4) == 4


@pytest.mark.parametrize(
    ("slots", "errors", "match"),
    [
        ([0, 1], [1.0, float("nan")], "not finite"),
        ([0, 1], [float("-inf"), 1.0], "not finite"),
        ([0, 1], [1.0], "shape"),
        ([[0], [1]], [[1.0], [1.0]], "shape"),
        ([0, -1], [1.0, 1.0], "stored"),
        ([0, 5], [1.0, 1.0], "stored"),
    ],
)
def test_priorities_that_make_no_sense_change_nothing(slots: list[Any], errors: list[Any], match: str) -> None:
    buffer = make(9, replay="prioritized")
    for step in range(5):
        one(buffer, step, True)
    before, largest = buffer.index.mass.values.copy(), buffer.index.max_priority
    with pytest.raises(ValueError, match=match):
        buffer.update_priorities(torch.tensor(slots), torch.tensor(errors) * 7)
    assert np.array_equal(buffer.index.mass.values, before)
    assert buffer.index.max_priority == largest
    buffer.update_priorities(torch.zeros(0, dtype=torch.int64), torch.zeros(0))


def test_what_could_lose_a_next_state_is_refused() -> None:
    buffer = filled([False, True, False, False, False, False])
    ones, no = torch.ones(1), torch.tensor([False])
    for slot, following in [(3, 3), (3, 2), (3, 0), (0, 6), (0, 11), (-1, 2), (3, -1), (9, 5)]:
        with pytest.raises(AssertionError):
            buffer.complete(torch.tensor([slot]), ~no, ones, ones, ones, torch.tensor([following]), no)
    with pytest.raises(AssertionError, match="complete already"):
        buffer.complete(torch.tensor([1]), ~no, ones, ones, ones, torch.tensor([1]), ~no)
    with pytest.raises(AssertionError, match="too small"):
        buffer.push(torch.zeros(4, WIDTH), torch.ones(4, ACTIONS, dtype=torch.bool), 6)
    with pytest.raises(AssertionError, match="step 2 after 5"):
        buffer.push(torch.zeros(1, WIDTH), torch.ones(1, ACTIONS, dtype=torch.bool), 2)
    assert buffer.check_valid() == (True, "ok")


def test_states_of_another_shape_are_refused() -> None:
    tensors, numbers = filled([True] * 6).state_dict()
    untouched = make(4)
    with pytest.raises(CheckpointError, match="room for 4"):
        untouched.load_state_dict(tensors, numbers)
    with pytest.raises(CheckpointError, match="room for 9"):
        make(9).load_state_dict(tensors, numbers)  # a full ring goes on at its head
    with pytest.raises(CheckpointError, match="'states'"):
        ReplayBuffer(settings_of(6), WIDTH + 1, ACTIONS, CPU).load_state_dict(tensors, numbers)
    with pytest.raises(CheckpointError, match="'states'"):
        make(6, buffer_dtype="float32").load_state_dict(tensors, numbers)
    wrong = make(6)
    with pytest.raises(CheckpointError, match="'mass'"):
        wrong.load_state_dict({**tensors, "mass": tensors["mass"].float()}, numbers)
    assert len(wrong) == 0
    assert not bool(wrong.states.any())
    for changed in ({"head": 9}, {"head": 6}, {"head": -1}, {"young": 7}, {"young": -1}):
        with pytest.raises(CheckpointError):
            make(6).load_state_dict(tensors, {**numbers, **changed})


def test_a_ring_that_is_not_full_fits_into_a_larger_one() -> None:
    buffer = make(8)
    for step in range(5):
        one(buffer, step, True)
    larger = make(20)
    larger.load_state_dict(*buffer.state_dict())
    one(larger, 5, True)
    assert larger.check_valid() == (True, "ok")
    assert larger.read(torch.arange(6)).state[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("capacity", [6, 9])
def test_a_state_of_which_all_has_expired_goes_on(capacity: int) -> None:
    """Nothing is young any more; the ring stands at its first slot."""
    buffer = make(6, max_age=2)
    for step in range(6 if capacity == 6 else 5):
        one(buffer, step, True)
    assert buffer.num_ready(9) == 0
    other = make(capacity, max_age=2)
    other.load_state_dict(*buffer.state_dict())
    assert (other.num_ready(9), len(other)) == (0, len(buffer))
    one(other, 9, True)
    assert other.num_ready(9) == 1
    assert other.check_valid() == (True, "ok")


def test_an_empty_state_begins_anew_in_a_buffer_that_was_used() -> None:
    used = filled([True] * 6, replay="prioritized", recent_fraction=0.5)
    used.load_state_dict(*make(6, replay="prioritized", recent_fraction=0.5).state_dict())
    assert (len(used), used.num_ready(0)) == (0, 0)
    one(used, 0, True)
    assert used.sample(torch.tensor([0.5]), 0, 0.4).slot.tolist() == [0]
    assert used.check_valid() == (True, "ok")


def _next_is_older(buffer: ReplayBuffer) -> None:
    buffer.index.done[5] = False
    buffer.index.next_slots[5] = 4


CORRUPTIONS: dict[str, Callable[[ReplayBuffer], object]] = {
    "head": lambda b: setattr(b.index, "head", 40),
    "goes on elsewhere": lambda b: setattr(b.index, "head", 3),
    "counter of complete": lambda b: setattr(b.index, "num_complete", 3),
    "counter of usable": lambda b: setattr(b.index, "num_usable", 3),
    "before the first slot": lambda b: setattr(b.index, "head", -1),
    "younger than there are": lambda b: setattr(b.index, "young", 31),
    "fewer than none are young": lambda b: setattr(b.index, "young", -1),
    "the oldest has expired": lambda b: setattr(b.index, "young", 29),
    "more than there is room for": lambda b: setattr(b.index, "filled", 41),
    "never written": lambda b: b.index.complete.__setitem__([0, 30], [False, True]),
    "birth": lambda b: b.index.born.__setitem__(5, 40),
    "next is older": _next_is_older,
    "next is outside": lambda b: (b.index.done.__setitem__(5, False), b.index.next_slots.__setitem__(5, 99)),
    "next is itself": lambda b: b.index.done.__setitem__(5, False),
    "a little too large a mass": lambda b: b.index.mass.set(np.array([2]), np.array([1.01])),
    "drawn though incomplete": lambda b: b.index.mass.set(np.array([11]), np.array([1.0])),
    "negative mass": lambda b: b.index.mass.set(np.array([2]), np.array([-1.0])),
    "too large a mass": lambda b: b.index.mass.set(np.array([2]), np.array([50.0])),
    "rank": lambda b: b.index.ready.set(np.array([2]), np.array([0.0])),
    "reward": lambda b: b.index.outcomes["reward"].__setitem__(2, np.nan),
    "state": lambda b: b.states.__setitem__((2, 1), float("inf")),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_check_valid_catches(name: str) -> None:
    buffer = make(40, replay="prioritized", recent_fraction=0.1)
    for step in range(30):
        one(buffer, step, step != 11)
    assert buffer.check_valid() == (True, "ok")
    CORRUPTIONS[name](buffer)
    ok, why = buffer.check_valid()
    assert not ok
    assert why != "ok"


@pytest.mark.parametrize("following", [-1, 40, 41])
def test_a_next_slot_outside_is_a_fault_whatever_slot_it_would_be(following: int) -> None:
    """Modulo the capacity these are younger."""
    buffer = make(40)
    for step in range(43):
        one(buffer, step, True)
    buffer.index.done[5] = False
    buffer.index.next_slots[5] = following % 40
    assert buffer.check_valid() == (True, "ok")
    buffer.index.next_slots[5] = following
    assert "not younger" in buffer.check_valid()[1]


@pytest.mark.parametrize(("dtype", "gigabytes"), [("float16", 0.12), ("float32", 0.23)])
def test_size_of_a_buffer_as_users_have_it(dtype: str, gigabytes: float) -> None:
    """100,000 states of a hidden_size of 512 with the five scalars of q_state, every column and the sums."""
    config = settings_of(100_000, buffer_dtype=dtype, replay="prioritized", recent_fraction=0.1)
    buffer = ReplayBuffer(config, 517, ACTIONS, CPU)
    index = buffer.index
    columns = [buffer.states, buffer.valid, index.outcomes, index.complete, index.born]
    size = sum(array.nbytes for array in (*columns, *index.mass.levels, *index.ready.levels))
    assert size / 1e9 <= gigabytes
    assert buffer.nbytes == size
    plain = ReplayBuffer(settings_of(100_000, buffer_dtype=dtype, replay="prioritized"), 517, ACTIONS, CPU)
    assert plain.nbytes == size - sum(level.nbytes for level in index.ready.levels), "no ranks without recent draws"
