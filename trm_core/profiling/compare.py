"""Paired timing: two or more pieces of work in alternation, and the ratio of their times with an interval."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np


def alternate(works: dict[str, Callable[[], object]], repetitions: int) -> dict[str, np.ndarray]:
    """Seconds [repetitions] of each piece of work, run in turn; the first round is thrown away."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    return {name: np.array(values[1:]) for name, values in seconds.items()}


def ratio(
    numerator: np.ndarray, denominator: np.ndarray, draws: int = 4000, confidence: float = 0.95
) -> dict[str, float]:
    """The median of the ratios of neighbours, with the bootstrap interval of that median."""
    ratios = numerator / denominator
    random = np.random.default_rng(0)
    medians = np.median(random.choice(ratios, (draws, len(ratios))), axis=1)
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high), "repetitions": len(ratios)}
