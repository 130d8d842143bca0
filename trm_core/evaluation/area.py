"""The area under an accuracy/opened curve: one number for a whole trade-off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def curve_area(opened: Sequence[float], accuracy: Sequence[float], num_capsules: int) -> float:
    """Mean accuracy over 0..k opened capsules, in the accuracies' unit.

    Linear between the points (choosing between two settings at random attains that) and flat after the last one; flat
    before the first one too, so give it a point at 0. Points with the same number of capsules are averaged.
    """
    assert len(opened) == len(accuracy) > 0, (len(opened), len(accuracy))
    places, where = np.unique(np.asarray(opened, dtype=float), return_inverse=True)
    mean = np.bincount(where, accuracy) / np.bincount(where)
    ends = np.array([0.0, *places[(places > 0) & (places < num_capsules)], float(num_capsules)])
    return float(np.trapezoid(np.interp(ends, places, mean), ends) / num_capsules)
