"""Paired timing: run two or more pieces of work alternately and compare their times, with confidence intervals."""

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
    """Seconds [repetitions] per call of each piece of work. They run in turn, so that other load on the machine affects
    all alike. Each value is the mean of `calls` calls; the first `warmup` rounds are discarded; `before` prepares each
    round and is not timed.
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
    """The median and its bootstrap interval: (median, low, high)."""
    medians = np.median(np.random.default_rng(0).choice(values, (draws, len(values))), axis=1)
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(np.median(values)), float(low), float(high)


def ratio(
    numerator: np.ndarray, denominator: np.ndarray, draws: int = 4000, confidence: float = 0.95
) -> dict[str, float]:
    """The median of the pairwise ratios, with its bootstrap interval."""
    ratios = numerator / denominator
    median, low, high = median_interval(ratios, draws, confidence)
    return {"ratio": median, "low": low, "high": high, "repetitions": len(ratios)}
