"""The area under an accuracy/opened curve."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trm_core.evaluation.area import curve_area


def test_by_hand() -> None:
    # Flat at 0.5 up to 1, a line to 0.9 at 3, flat to 4.
    assert curve_area([1, 3], [0.5, 0.9], 4) == pytest.approx((0.5 + 2 * 0.7 + 0.9) / 4)
    assert curve_area([2], [0.6], 4) == pytest.approx(0.6)
    assert curve_area([0, 2, 2, 4], [0.0, 0.4, 0.6, 1.0], 4) == pytest.approx(0.5)


@given(st.lists(st.tuples(st.floats(0, 8), st.floats(0, 1)), min_size=1, max_size=6))
def test_order_does_not_matter_and_the_area_is_between_the_accuracies(points: list[tuple[float, float]]) -> None:
    opened, accuracy = zip(*points, strict=True)
    got = curve_area(opened, accuracy, 8)
    again = curve_area(opened[::-1], accuracy[::-1], 8)
    assert got == pytest.approx(again)
    assert min(accuracy) - 1e-9 <= got <= max(accuracy) + 1e-9
