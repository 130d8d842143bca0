"""The few statistics that verdicts rest on, written here because importing scipy.stats takes longer than a diagnosis.

`np.median`, `np.quantile`, `np.isin`, and `np.unique` without further outputs import numpy.ma, which takes about as
long as all checks of a run; `middle`, `quantile`, `among` and `distinct` replace them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trm_core.diagnose.series import Series


def middle(values: ArrayLike) -> float:
    """The median of all values; NaN if one is NaN or there are none."""
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=None)
    count = len(ordered)
    if not count or np.isnan(ordered[-1]):
        return math.nan
    return float(ordered[(count - 1) // 2 : count // 2 + 1].mean())


def quantile(values: ArrayLike, share: float) -> float:
    """The quantile at `share` (0 to 1), interpolated linearly between the two nearest values."""
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=None)
    return float(np.interp(share * (len(ordered) - 1), np.arange(len(ordered)), ordered))


def distinct(values: NDArray[Any]) -> NDArray[Any]:
    """Each value once, in order."""
    return np.unique(values, return_counts=True)[0]


def among(values: NDArray[Any], others: NDArray[Any]) -> NDArray[np.bool_]:
    """[n] bool: which of `values` [n] occur in `others`."""
    known = distinct(others)
    if not len(known):
        return np.zeros(len(values), np.bool_)
    return np.equal(known[np.searchsorted(known, values).clip(max=len(known) - 1)], values)


def block_means(series: Series, blocks: int = 20) -> NDArray[np.float64]:
    """[at most `blocks`]: means of neighbouring finite values. Neighbours are correlated; block means hardly are."""
    values = series.finite().values
    count = min(blocks, len(values))
    return np.array([part.mean() for part in np.array_split(values, count)]) if count else np.zeros(0)


def rising(series: Series, blocks: int = 20) -> float:
    """One-sided p-value for a rising trend (Mann-Kendall test on block means): near 0 the series rises, near 1 it
    falls. 1 if there are fewer than four values.
    """
    means = block_means(series, blocks)
    n = len(means)
    if n < 4:
        return 1.0
    score = float(np.sign(means[None, :] - means[:, None])[np.triu_indices(n, 1)].sum())
    spread = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    return 0.5 * math.erfc((score - np.sign(score)) / spread / math.sqrt(2))


def mean_interval(series: Series, blocks: int = 10) -> tuple[float, float]:
    """(mean, half the width of its 95 % confidence interval) from block means; (nan, inf) without values."""
    means = block_means(series, blocks)
    if not len(means):
        return math.nan, math.inf
    half = 2.26 * float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else math.inf
    return float(means.mean()), half


def median(series: Series) -> float:
    """The median of the finite values; NaN if there are none."""
    values = series.finite().values
    return middle(values)
