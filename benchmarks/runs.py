"""Train and evaluate through the real command line, in separate processes; confidence intervals over seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
Item, Result = TypeVar("Item"), TypeVar("Result")


def trm(*arguments: str | Path, threads: int = 1) -> str:
    """Run `trm` with these arguments and return what it wrote to stdout; ends the benchmark if it fails."""
    words = [str(argument) for argument in arguments]
    done = in_a_process(words, threads)
    if done.returncode:
        raise SystemExit(f"trm {' '.join(words)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


def in_a_process(arguments: list[str], threads: int) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "trm_cli.main", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def train(config: Path, run: Path, settings: Sequence[str]) -> None:
    """Train into `run`, or resume what is there; a finished run is left as it is."""
    trm("train", "--config", config, "--resume", "auto", *settings, f"training.run_dir={run}")


def at_once(function: Callable[[Item], Result], items: Iterable[Item], jobs: int) -> list[Result]:
    """The results for all items, in their order, computing `jobs` at a time."""
    if jobs == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(function, items))


def interval(values: Sequence[float]) -> list[float | None]:
    """Mean and half width of the 95 % interval over seeds (Student's t); no half width for a single one."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return [mean, None]
    return [mean, float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)]
