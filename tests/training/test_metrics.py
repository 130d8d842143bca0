"""Averages of what the steps between two log lines say."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_core.training.metrics import Averages

# A name; its sum, of a type; its weight, on the host or in a tensor.
NUMBERS = st.integers(-1000, 1000)
TYPES = st.sampled_from([torch.float32, torch.float64, torch.int64])
ADDED = st.tuples(st.sampled_from("abcd"), NUMBERS, TYPES, st.integers(0, 9), st.none() | TYPES)


@given(st.lists(st.lists(ADDED, max_size=6), max_size=5))
@settings(max_examples=60, deadline=None)
def test_a_mean_is_the_sum_of_all_sums_over_that_of_all_weights(steps: list[list[tuple]]) -> None:  # type: ignore[type-arg]
    averages, expected = Averages(), {}
    for step in steps:
        for name, total, kind, weight, weight_kind in step:
            many = float(weight) if weight_kind is None else torch.tensor(weight, dtype=weight_kind)
            averages.add(name, torch.tensor(total, dtype=kind), many)
            before = expected.get(name, (0, 0))
            expected[name] = (before[0] + total, before[1] + weight)
        averages.settle()
    means = {name: float(Fraction(total, weight)) for name, (total, weight) in expected.items() if weight}
    assert averages.take() == pytest.approx(means, rel=1e-12)
    assert averages.take() == {}


def test_what_is_not_settled_counts_too() -> None:
    averages = Averages()
    averages.add("a", torch.tensor(3.0), 2.0)
    averages.settle()
    averages.add("a", torch.tensor(3), torch.tensor(1.0))
    averages.add_mean("b", torch.tensor([1, 2]))
    averages.add_vector(("b", "c"), torch.tensor([6.0, 0.5]))
    assert averages.take() == {"a": 2.0, "b": 3.0, "c": 0.5}


@given(st.lists(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_a_vector_counts_as_its_names_alone(rows: list[list[float]]) -> None:
    names = ("a", "b", "c")
    together, alone = Averages(), Averages()
    for row in rows:
        together.add_vector(names, torch.tensor(row))
        together.add("d", torch.tensor(row[0]), 2.0)
        together.add("never", torch.tensor(0.0), 0.0)
        for name, value in zip(names, row, strict=True):
            alone.add_mean(name, torch.tensor(value))
        alone.add("d", torch.tensor(row[0]), 2.0)
    assert together.take() == alone.take()
    assert together.take() == {}


def test_a_vector_has_a_value_for_each_name() -> None:
    with pytest.raises(AssertionError, match="2 names"):
        Averages().add_vector(("a", "b"), torch.zeros(3))
