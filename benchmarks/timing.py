"""Paired timing: two or more pieces of work in alternation, and the ratio of their times with an interval."""

from __future__ import annotations

from trm_core.profiling.compare import alternate, ratio
from trm_core.training.trainer import Trainer

__all__ = ["alternate", "ratio", "take_step"]


def take_step(trainer: Trainer) -> None:
    """One training step, as the loop takes it."""
    trainer.taker.take(trainer.standing())
