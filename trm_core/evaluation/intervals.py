"""95 % confidence intervals of accuracies."""

from __future__ import annotations

import math
from statistics import NormalDist

from torch import Tensor

Z = NormalDist().inv_cdf(0.975)


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
        return wilson_interval(round(mean * n), n)
    half = Z * float(values.std()) / math.sqrt(n) if n > 1 else 1.0
    return (max(mean - half, 0.0), min(mean + half, 1.0))


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """Wilson (1927): the rates that `right` of `n` do not contradict at 95 %.

    Own, because importing scipy.stats takes as long as a small evaluation.
    """
    rate, spread = right / n, Z * Z / n
    centre, half = rate + spread / 2, math.sqrt(spread * (rate * (1 - rate) + spread / 4))
    # What rounding leaves of 0 and 1 where no row, or every row, is right.
    low = 0.0 if right == 0 else (centre - half) / (1 + spread)
    high = 1.0 if right == n else (centre + half) / (1 + spread)
    return (low, high)
