"""Training and evaluating by the real command line, in processes of their own, and intervals over seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def trm(*arguments: str | Path, threads: int = 1) -> str:
    """Run `trm` with these arguments and return what it wrote to stdout; ends the benchmark if it fails."""
    command = [sys.executable, "-m", "trm_cli.main", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"trm {' '.join(command[3:])}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


def train(config: Path, run: Path, settings: Sequence[str]) -> None:
    """Train into `run`, or go on with what is there; a finished run is left as it is."""
    trm("train", "--config", config, "--resume", "auto", *settings, f"training.run_dir={run}")


def interval(values: Sequence[float]) -> list[float | None]:
    """Mean and half width of the 95 % interval over seeds (Student's t); no half width for a single one."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return [mean, None]
    return [mean, float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)]
