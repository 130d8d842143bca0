"""Paired timing: two or more pieces of work in alternation, and how their times compare, with an interval."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np


def alternate(
    works: dict[str, Callable[[], object]],
    repetitions: int,
    *,
    warmup: int = 1,
    calls: int = 1,
    before: Callable[[], object] = lambda: None,
) -> dict[str, np.ndarray]:
    """Seconds [repetitions] of one call of each piece of work, run in turn, so that what else the machine does strikes
    all alike. Each turn is the mean of `calls`; the first `warmup` rounds are thrown away; `before` prepares a round
    and is not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(warmup + repetitions):
        before()
        for name, work in works.items():
            began = time.perf_counter()
            for _ in range(calls):
                work()
            seconds[name].append((time.perf_counter() - began) / calls)
    return {name: np.array(values[warmup:]) for name, values in seconds.items()}


def median_interval(values: np.ndarray, draws: int = 4000, confidence: float = 0.95) -> tuple[float, float, float]:
    """The median and the bootstrap interval of it: (median, low, high)."""
    medians = np.median(np.random.default_rng(0).choice(values, (draws, len(values))), axis=1)
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(np.median(values)), float(low), float(high)


def ratio(
    numerator: np.ndarray, denominator: np.ndarray, draws: int = 4000, confidence: float = 0.95
) -> dict[str, float]:
    """The median of the ratios of neighbours, with the bootstrap interval of that median."""
    ratios = numerator / denominator
    median, low, high = median_interval(ratios, draws, confidence)
    return {"ratio": median, "low": low, "high": high, "repetitions": len(ratios)}
