"""Paired timing for the benchmarks: alternating pieces of work, and ratios or differences with 95 % intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trm_core.profiling.compare import alternate, median_interval, ratio

if TYPE_CHECKING:
    from trm_core.training.trainer import Trainer  # only for types: workers that import this need no torch

__all__ = ["alternate", "difference", "median_interval", "ratio", "rounded", "take_step"]


def difference(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """The median of the pairwise differences, with its bootstrap interval."""
    median, low, high = median_interval(one - other)
    return {"difference": median, "low": low, "high": high, "repetitions": len(one)}


def rounded(values: np.ndarray, digits: int = 3) -> dict[str, float]:
    """Median and interval, rounded for a record that people read."""
    median, low, high = (round(value, digits) for value in median_interval(values))
    return {"median": median, "low": low, "high": high}


def take_step(trainer: Trainer) -> None:
    """Take one training step, as the training loop does."""
    trainer.taker.take(trainer.standing())
