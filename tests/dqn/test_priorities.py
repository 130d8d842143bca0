"""Sums over blocks against plain sums, and that nothing of value zero is ever drawn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_core.dqn import priorities
from trm_core.dqn.priorities import SumTree

# One level, two and three levels.
SIZES = st.sampled_from([1, 15, 16, 17, 100, 8192, 8193, 140_000])


def exact(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum(values), targets, side="right")


@given(size=SIZES, seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_equals_a_plain_array_under_random_changes(size: int, seed: int) -> None:
    """Whole numbers, so that every sum is exact and any place that differs is wrong."""
    random = np.random.default_rng(seed)
    tree, naive = SumTree(size), np.zeros(size)
    for _ in range(12):
        count = int(random.integers(1, min(size, 300) + 1))
        if random.random() < 0.3:
            start = int(random.integers(0, size - count + 1))
            tree.clear(start, start + count)
            naive[start : start + count] = 0.0
        else:
            places = random.integers(0, size, count)
            values = random.integers(0, 5, count).astype(np.float64)
            tree.set(places, values)
            for place, value in zip(places, values, strict=True):
                naive[place] = value
        if random.random() < 0.3:
            continue  # so that several changes wait for their sums
        assert tree.fault() is None
        assert np.array_equal(tree.values, naive)
        assert tree.total == naive.sum()
        place = int(random.integers(0, size))
        assert tree.before(place) == naive[:place].sum()
        if naive.any():
            targets = random.integers(0, int(naive.sum()), 50) + random.choice([0.0, 0.5], 50)
            assert np.array_equal(tree.find(targets), exact(naive, targets))


@given(size=SIZES, seed=st.integers(0, 10**6), share=st.sampled_from([0.001, 0.05, 0.9]))
@settings(max_examples=30, deadline=None)
def test_a_value_of_zero_is_never_found(size: int, seed: int, share: float) -> None:
    """Values of very different sizes, at the ends and at every border between two values, rounded up and down."""
    random = np.random.default_rng(seed)
    values = np.where(random.random(size) < share, 10.0 ** random.uniform(-9, 9, size), 0.0)
    values[random.integers(0, size)] = 1e-4
    tree = SumTree(size)
    tree.load(values)
    borders = np.cumsum(values[values > 0])[:2000]
    fractions = np.array([0.0, 0.5, 0.99999994, 1.0 - 2**-53, 1.0]) * tree.total
    targets = np.concatenate([fractions, borders, np.nextafter(borders, 0), np.nextafter(borders, np.inf)])
    found = tree.find(targets)
    assert (found >= 0).all()
    assert (found < size).all()
    assert (values[found] > 0).all()
    assert found[0] == np.flatnonzero(values)[0]


def test_sums_are_the_same_bits_however_the_values_came_to_be() -> None:
    random = np.random.default_rng(0)
    tree = SumTree(140_000)
    for _ in range(200):
        tree.set(random.integers(0, tree.size, 300), random.random(300) ** 0.6)
        tree.clear(start := int(random.integers(0, tree.size - 96)), start + 96)
    fresh = SumTree(tree.size)
    fresh.load(tree.values.copy())
    targets = random.random(5000) * tree.total
    assert tree.total == fresh.total
    for mine, theirs in zip(tree.levels, fresh.levels, strict=True):
        assert np.array_equal(mine, theirs)
    assert np.array_equal(tree.find(targets), fresh.find(targets))


@pytest.mark.parametrize("size", [8193, 140_000])
def test_clearing_reaches_both_borders(size: int) -> None:
    """Of blocks, wherever the range begins and ends, up to the last place."""
    tree = SumTree(size)
    tree.load(np.ones(size))
    for offset in (0, size - 34):
        for start in range(offset, offset + 34):
            for end in range(start + 1, offset + 35):
                tree.clear(start, end)
                assert tree.total == size - (end - start)
                tree.set(np.arange(start, end), np.ones(end - start))
    assert tree.fault() is None


def test_values_that_are_loaded_replace_all_that_was_there() -> None:
    tree = SumTree(9000)
    tree.load(np.full(tree.size, 3.0))
    tree.set(np.array([8999]), np.array([7.0]))
    tree.load(np.ones(10))
    assert tree.total == 10
    assert tree.before(9000) == 10
    assert tree.values.tolist() == [1.0] * 10 + [0.0] * 8990
    assert tree.find(np.array([9.5])).tolist() == [9]


def test_every_question_knows_of_the_last_change() -> None:
    tree, two = SumTree(9000), np.array([2.0])
    questions: list[Callable[[], object]] = [
        lambda: tree.before(9000) == 2,
        lambda: tree.total == 2,
        lambda: tree.find(np.array([0.0, 1.5])).tolist() == [place, place],
        lambda: tree.fault() is None,
    ]
    for place, question in enumerate(questions):
        tree.clear(0, 9000)
        tree.set(np.array([place]), two)
        assert question(), place


def test_changes_that_nobody_asks_about_do_not_pile_up() -> None:
    tree = SumTree(10_000)
    for step in range(1000):
        tree.set(np.array([step]), np.array([1.0]))
    assert len(tree._touched) <= priorities.MAX_TOUCHED
    assert tree.total == 1000


def test_an_empty_tree_is_not_drawn_from() -> None:
    with pytest.raises(AssertionError, match="nothing to draw"):
        SumTree(20).find(np.array([0.0]))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_fault_names_a_broken_level(level: int) -> None:
    tree = SumTree(140_000)
    tree.load(np.ones(tree.size))
    assert tree.fault() is None
    tree.levels[level][3] += 0.5
    assert "sums of level" in (tree.fault() or "")
    tree.levels[0][3] = np.nan
    assert "not finite" in (tree.fault() or "")


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, -1.0, "negative"),
        (8999, np.inf, "not finite"),
        (9000, 1.0, "beyond the 9000 places"),
    ],
)
def test_fault_names_a_value_that_makes_no_sense(place: int, value: float, words: str) -> None:
    tree = SumTree(9000)
    tree.load(np.ones(tree.size))
    tree.set(np.array([place]), np.array([value]))
    assert words in (tree.fault() or "")


def test_fault_names_a_sum_of_no_block() -> None:
    tree = SumTree(9000)
    tree.levels[1][-1] = 1.0
    assert "sums of level 1" in (tree.fault() or "")
