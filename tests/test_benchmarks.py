"""The benchmarks run from their own command lines; their figures are not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY = [
    "training.total_steps=60",
    "training.predictor_steps=40",
    "training.lr_warmup_steps=5",
    "dqn.buffer_min_size=500",
]


@pytest.mark.slow
def test_quickstart_folds(tmp_path: Path) -> None:
    out, plot = tmp_path / "folds.json", tmp_path / "curves.png"
    command = [sys.executable, "-m", "benchmarks.quickstart_folds", "--out", str(out), "--plot", str(plot)]
    command += ["--runs", str(tmp_path / "runs"), "--threads", "1", "--folds", "0", "1", "--", *TINY]
    environment = {**os.environ, "TRM_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(out.read_text())
    assert json.loads(done.stdout) == record
    assert record["digits"] == 720, "two folds of 360 test digits"
    assert record["never"]["opened"] == 0
    assert record["all"]["opened"] == 16
    assert record["svm, all pixels"] > 97
    assert plot.stat().st_size > 10_000


@pytest.mark.slow
def test_capsule_store_memory_stays_below_its_limit(tmp_path: Path) -> None:
    """A file of 370 MB, built and walked with less memory than it has."""
    command = [sys.executable, "benchmarks/capsule_store_memory.py", "--rows", "6000", "--folder", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(done.stdout)
    assert record["build"]["mb_beyond_imports"] < 300
    assert record["iterate"]["mb_beyond_imports"] < 300
