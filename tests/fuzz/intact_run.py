"""A run as it was written and what the commands say of it: what damaged copies are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESUMED_STEPS = 62  # two more than the trained run has


@dataclass(frozen=True)
class Intact:
    """The run that every case gets a copy of."""

    run: Path
    checkpoints: dict[int, Path]  # by step
    evaluations: dict[int, dict[str, Any]]  # `trm eval --json` by step
    resumed: dict[int, Path]  # the last checkpoint when training goes on from there to RESUMED_STEPS
