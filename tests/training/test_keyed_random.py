"""Keyed draws: uniform, and a function of seed, step, purpose and global row alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_core.keyed_random import Purpose, keyed_uniform, keyed_uniforms

SEEDS = st.integers(-(2**63), 2**63 - 1)


@given(seed=SEEDS, step=st.integers(0, 10**9))
@settings(max_examples=15, deadline=None)
def test_draws_are_uniform_for_any_seed(seed: int, step: int) -> None:
    rows = torch.arange(4096)
    for draws in (
        keyed_uniform(seed, step, Purpose.PRICE, rows),
        keyed_uniform(seed, step, Purpose.PRICE, rows[:64], 64).flatten(),
        torch.stack([keyed_uniform(seed, step + i, Purpose.PRICE, rows[:64]) for i in range(64)]).flatten(),
    ):
        assert draws.dtype == torch.float32
        assert float(draws.min()) >= 0.0
        assert float(draws.max()) < 1.0
        # 32 bins of 128 on average: chi-square with 31 degrees of freedom, below 90 but for one case in 1e7.
        bins = torch.bincount((draws * 32).long(), minlength=32).double()
        assert float(((bins - 128) ** 2 / 128).sum()) < 90


@given(seed=SEEDS, step=st.integers(0, 10**6), rows=st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_a_row_draws_the_same_whatever_is_drawn_beside_it(seed: int, step: int, rows: list[int]) -> None:
    numbers = torch.tensor(rows)
    together = keyed_uniform(seed, step, Purpose.SELECT, numbers, 5)
    for index in range(len(rows)):
        alone = keyed_uniform(seed, step, Purpose.SELECT, numbers[index : index + 1], 5)
        assert torch.equal(together[index : index + 1], alone)
    narrow = keyed_uniform(seed, step, Purpose.SELECT, numbers, 3)
    assert torch.equal(together[:, :3], narrow)


@given(seed=SEEDS, step=st.integers(0, 2**62), rows=st.lists(st.integers(0, 10**12), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_a_purpose_draws_the_same_beside_others(seed: int, step: int, rows: list[int]) -> None:
    numbers = torch.tensor(rows)
    alone = [keyed_uniform(seed, step, purpose, numbers) for purpose in Purpose]
    assert torch.equal(keyed_uniforms(seed, step, tuple(Purpose), numbers), torch.stack(alone))


@pytest.mark.parametrize("seed", [0, -1, 2**62])
def test_purposes_steps_and_seeds_are_unrelated(seed: int) -> None:
    rows = torch.arange(2000)
    series = [keyed_uniform(seed, 3, purpose, rows) for purpose in Purpose]
    series += [keyed_uniform(seed, 4, Purpose.EXPLORE, rows), keyed_uniform(seed + 1, 3, Purpose.EXPLORE, rows)]
    correlations = torch.corrcoef(torch.stack(series)) - torch.eye(len(series))
    assert float(correlations.abs().max()) < 0.1
    # Neighbours in one series and in time are unrelated as well.
    one = series[0]
    assert abs(float(torch.corrcoef(torch.stack([one[1:], one[:-1]]))[0, 1])) < 0.1
