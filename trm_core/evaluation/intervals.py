"""95 % confidence intervals of accuracies."""

from __future__ import annotations

import math

from torch import Tensor


def accuracy_interval(values: Tensor) -> tuple[float, float]:
    """Interval of the mean of per-row accuracies [N] in [0, 1].

    Wilson's score interval for right/wrong rows; the normal interval of the mean where rows are partly right.
    """
    n = len(values)
    if n == 0:
        return (math.nan, math.nan)
    values = values.double()
    mean = float(values.mean())
    if bool(((values == 0) | (values == 1)).all()):
        from scipy.stats import binomtest

        interval = binomtest(round(mean * n), n).proportion_ci(0.95, method="wilson")
        return (float(interval.low), float(interval.high))
    half = 1.96 * float(values.std()) / math.sqrt(n) if n > 1 else 1.0
    return (max(mean - half, 0.0), min(mean + half, 1.0))
