"""No two puzzles of one form are on different sides of a split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_core.data.puzzles.build.splits import split_by_form, subsample
from trm_core.errors import DataError


@given(
    st.lists(st.integers(0, 12), min_size=2, max_size=60).filter(lambda forms: len(set(forms)) > 1),
    st.floats(0.0, 1.0),
    st.integers(0, 9),
)
@settings(max_examples=100, deadline=None)
def test_forms_stay_together(forms: list[int], share: float, seed: int) -> None:
    array = np.array(forms, dtype=np.uint64)
    held_out = split_by_form(array, share, seed)
    assert not set(array[held_out].tolist()) & set(array[~held_out].tolist())
    assert not held_out.all()
    assert held_out.any() == (share > 0)


@given(st.integers(10, 200), st.floats(0.05, 0.9))
@settings(max_examples=50, deadline=None)
def test_the_share_is_met_where_all_differ(count: int, share: float) -> None:
    assert split_by_form(np.arange(count), share, 0).sum() == max(1, round(share * count))


def test_one_form_cannot_be_split() -> None:
    with pytest.raises(DataError, match="copies of one"):
        split_by_form(np.zeros(4), 0.5, 0)
    assert not split_by_form(np.zeros(4), 0.0, 0).any()


def test_subsample_is_in_order_and_without_repeats() -> None:
    chosen = subsample(100, 10, 0)
    assert (np.diff(chosen) > 0).all()
    assert (chosen == subsample(100, 10, 0)).all()
    assert (subsample(100, 10, 1) != chosen).any()
    assert len(subsample(5, 10, 0)) == 5
