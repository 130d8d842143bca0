"""95 % confidence intervals of accuracies."""

from __future__ import annotations

import math
from statistics import NormalDist

from torch import Tensor

Z = NormalDist().inv_cdf(0.975)
_FEW = 30  # partly right rows: with fewer, their own spread says too little


def accuracy_interval(values: Tensor) -> tuple[float, float]:
    """Interval of the mean of per-row accuracies [N] in [0, 1].

    Wilson's score interval for right/wrong rows; the normal interval of the mean where rows are partly right. For few
    or identical partly right rows it is Wilson's too, which is wide enough: no values in [0, 1] with this mean vary
    more than right and wrong ones.
    """
    n = len(values)
    if n == 0:
        return (math.nan, math.nan)
    values = values.double()
    mean = float(values.mean())
    deviation = float(values.std()) if n > 1 else 0.0
    if bool(((values == 0) | (values == 1)).all()) or n < _FEW or deviation == 0:
        return wilson_interval(mean * n, n)
    half = Z * deviation / math.sqrt(n)
    return (max(mean - half, 0.0), min(mean + half, 1.0))


def wilson_interval(right: float, n: int) -> tuple[float, float]:
    """Wilson (1927): the rates that `right` out of `n` do not contradict at 95 %.

    Our own, because importing scipy.stats takes as long as a small evaluation.
    """
    rate, spread = right / n, Z * Z / n
    centre, half = rate + spread / 2, math.sqrt(spread * (rate * (1 - rate) + spread / 4))
    # Exactly 0 and 1 where no row, or every row, is right: rounding would miss them.
    low = 0.0 if right == 0 else (centre - half) / (1 + spread)
    high = 1.0 if right == n else (centre + half) / (1 + spread)
    return (low, high)
