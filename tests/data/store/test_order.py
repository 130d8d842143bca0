"""The order of rows: a bijection in every epoch, and a pure function of its arguments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_core.data.order import KeyedPermutation, RowOrder, key_of, mix, shuffled, uniform


def test_mix_is_splitmix64() -> None:
    """First outputs of the published generator with seed 0 (its state advances by the golden constant)."""
    state = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(int(value)) for value in mix(state)] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permutation_is_a_bijection_with_its_inverse(count: int, seed: int) -> None:
    permutation = KeyedPermutation(count, key_of(seed))
    images = permutation.forward(np.arange(count))
    assert np.array_equal(np.sort(images), np.arange(count))
    assert np.array_equal(permutation.inverse(images), np.arange(count))


def test_permutation_of_more_than_memory() -> None:
    count = 10**13 + 7
    permutation = KeyedPermutation(count, key_of(1))
    index = np.array([0, 1, 2, count // 2, count - 1])
    images = permutation.forward(index)
    assert ((images >= 0) & (images < count)).all()
    assert np.array_equal(permutation.inverse(images), index)


@pytest.mark.parametrize("count", [3, 5, 24])
def test_permutation_is_uniform(count: int) -> None:
    """Every place receives every value about equally often over keys (chi-square far from its tail)."""
    trials = 1500
    table = np.zeros((count, count))
    for seed in range(trials):
        table[np.arange(count), KeyedPermutation(count, key_of(seed)).forward(np.arange(count))] += 1
    chi = ((table - trials / count) ** 2 / (trials / count)).sum()
    freedom = (count - 1) ** 2
    assert chi < freedom + 6 * np.sqrt(2 * freedom)


def test_shuffled_and_uniform() -> None:
    assert np.array_equal(np.sort(shuffled(key_of(1), 1000)), np.arange(1000))
    draws = uniform(key_of(1), np.arange(100_000))
    assert 0 <= draws.min() < draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.005
    assert np.array_equal(draws[5:9], uniform(key_of(1), np.arange(5, 9)))
    assert key_of(1, 2) != key_of(2, 1)
    assert key_of(-1) != key_of(1)


orders = st.builds(
    RowOrder,
    rows=st.integers(1, 500),
    block_rows=st.integers(1, 40),
    window_blocks=st.integers(1, 12),
    seed=st.integers(0, 1000),
    source=st.integers(0, 3),
)


@settings(max_examples=40, deadline=None)
@given(orders, st.integers(0, 5))
def test_windows_tile_each_epoch_and_hold_each_row_once(order: RowOrder, epoch: int) -> None:
    position, visited = epoch * order.rows, []
    for window in range(order.windows):
        place = order.place(position)
        assert (place.epoch, place.window, place.start) == (epoch, window, position)
        assert order.place(place.stop - 1) == place
        rows, visit = order.window_rows(epoch, window)
        assert len(rows) == len(visit) == place.stop - place.start
        assert np.array_equal(np.sort(visit), np.arange(len(rows)))
        assert (np.diff(rows) > 0).all()
        visited.append(rows[visit])
        position = place.stop
    assert position == (epoch + 1) * order.rows
    assert np.array_equal(np.sort(np.concatenate(visited)), np.arange(order.rows))


def test_epochs_sources_and_seeds_differ() -> None:
    def first_window(seed: int, source: int, epoch: int) -> tuple[bytes, bytes]:
        rows, visit = RowOrder(1000, 16, 4, seed, source).window_rows(epoch, 0)
        return rows.tobytes(), visit.tobytes()

    assert first_window(1, 0, 0) == first_window(1, 0, 0)
    variants = [first_window(1, 0, 0), first_window(2, 0, 0), first_window(1, 1, 0), first_window(1, 0, 1)]
    assert len({rows for rows, _ in variants}) == 4
    assert len({visit for _, visit in variants}) == 4
