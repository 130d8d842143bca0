"""An intact run and the output of commands on it, with which damaged copies are compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESUMED_STEPS = 62  # two more than those of the trained run


@dataclass(frozen=True)
class Intact:
    """The run of which every case gets a copy."""

    run: Path
    checkpoints: dict[int, Path]  # by step
    evaluations: dict[int, dict[str, Any]]  # `trm eval --json` by step
    resumed: dict[int, Path]  # by step: the last checkpoint after resuming there up to RESUMED_STEPS
