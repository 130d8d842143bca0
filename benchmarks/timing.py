"""Paired timing for the benchmarks: pieces of work in alternation, and ratios or differences with 95 % intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trm_core.profiling.compare import alternate, median_interval, ratio

if TYPE_CHECKING:
    from trm_core.training.trainer import Trainer  # without torch, for benchmarks whose workers import them

__all__ = ["alternate", "difference", "median_interval", "ratio", "rounded", "take_step"]


def difference(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """The median of the differences of neighbours, with the bootstrap interval of that median."""
    median, low, high = median_interval(one - other)
    return {"difference": median, "low": low, "high": high, "repetitions": len(one)}


def rounded(values: np.ndarray, digits: int = 3) -> dict[str, float]:
    """Median and interval, for a record that people read."""
    median, low, high = (round(value, digits) for value in median_interval(values))
    return {"median": median, "low": low, "high": high}


def take_step(trainer: Trainer) -> None:
    """One training step, as the loop takes it."""
    trainer.taker.take(trainer.standing())
