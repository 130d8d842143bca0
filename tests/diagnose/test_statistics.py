"""Trends and intervals hold what they promise on series that are known."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trm_core.diagnose.series import NOTHING, Series, from_lines
from trm_core.diagnose.statistics import among, block_means, distinct, mean_interval, median, middle, quantile, rising

numbers = st.lists(st.integers(-5, 5) | st.floats(-1e6, 1e6), max_size=12)


def series(values: np.ndarray) -> Series:
    return Series(np.arange(len(values)), values.astype(float))


def test_a_trend_is_seen_and_noise_is_not() -> None:
    random = np.random.default_rng(0)
    line = np.linspace(0, 1, 400)
    assert rising(series(line + random.standard_normal(400))) < 0.01
    assert rising(series(-line + random.standard_normal(400))) > 0.99
    seen = [rising(series(random.standard_normal(400))) < 0.05 for _ in range(400)]
    assert np.mean(seen) < 0.08  # one in twenty is what 0.05 means


def test_intervals_cover() -> None:
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        mean, half = mean_interval(series(2 + random.standard_normal(200)))
        hits += abs(mean - 2) <= half
    assert 0.9 < hits / 300 < 0.99


def test_holes_and_nothing() -> None:
    values = series(np.array([1.0, math.nan, 3.0]))
    assert len(values.finite()) == 2
    assert median(values) == 2
    assert math.isnan(median(NOTHING))
    assert rising(NOTHING) == 1
    assert not len(block_means(NOTHING))
    assert mean_interval(NOTHING)[1] == math.inf


def test_lines_become_series() -> None:
    found = from_lines([{"step": 1, "a": 1, "b": None}, {"step": "x", "a": 9}, {"step": 2, "a": 2.5, "text": "no"}])
    assert found["a"].steps.tolist() == [1, 2]
    assert found["a"].values.tolist() == [1, 2.5]
    assert math.isnan(found["b"].last)
    assert "text" not in found
    assert found.last_step == 2


logged = st.dictionaries(
    st.sampled_from(["a", "b", "", "eval/a"]),
    st.one_of(st.floats(), st.none(), st.booleans(), st.integers(), st.just(10**400), st.text(), st.lists(st.none())),
)


@given(st.lists(st.tuples(logged, st.one_of(st.integers(0, 9), st.text(max_size=1)), st.booleans())))
def test_series_hold_the_numbers_of_any_records(records: list[tuple[dict[str, Any], Any, bool]]) -> None:
    lines = [{"step": step} | values if first else values | {"step": step} for values, step, first in records]
    expected: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and isinstance(line["step"], int) and isinstance(value, int | float | None):
                number = math.nan if value is None or abs(value) > sys.float_info.max else float(value)
                expected.setdefault(name, []).append((line["step"], number))
    found = from_lines(lines)
    assert set(found) == set(expected)
    for name, pairs in expected.items():
        np.testing.assert_array_equal(np.stack([found[name].steps, found[name].values], 1), np.array(pairs))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's of nothing and of infinity; ours are quiet
@given(numbers, numbers, st.floats(0, 1))
def test_own_ones_are_those_of_numpy(values: list[float], others: list[float], share: float) -> None:
    one, other = np.array(values), np.array(others)
    np.testing.assert_equal(middle(one), float(np.median(one)))
    assert distinct(one).tolist() == np.unique(one).tolist()
    assert among(one, other).tolist() == np.isin(one, other).tolist()
    if len(one):
        assert quantile(one, share) == pytest.approx(float(np.quantile(one, share)))
