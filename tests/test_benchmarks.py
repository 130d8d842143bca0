"""The benchmarks run from their own command lines; their figures are not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def run(folder: Path, module: str, *arguments: str | Path) -> dict[str, Any]:
    """The record that a benchmark prints and writes."""
    out = folder / f"{module}.json"
    command = [sys.executable, "-m", f"benchmarks.{module}", "--out", str(out), *map(str, arguments)]
    environment = {**os.environ, "TRM_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)
    return json.loads(out.read_text())


@pytest.mark.slow
def test_step_cost(tmp_path: Path) -> None:
    small = ("--hidden", "32", "--layers", "1", "--batch", "16", "--repetitions", "3")
    record = run(tmp_path, "step_cost", *small)
    for name in ("dqn over plain", "expand over plain", "expand over dqn"):
        assert 0.2 < record[name]["low"] <= record[name]["ratio"] <= record[name]["high"] < 20


@pytest.mark.slow
def test_ablation_keeps_finished_cells(tmp_path: Path) -> None:
    rows = ("--steps", "80", "--seeds", "0", "--rows", "baseline")
    first = run(tmp_path, "ablation", *rows)
    more = run(tmp_path, "ablation", *rows, "+ DQN with EXPAND")
    assert more["cells"]["digits|baseline|0"] == first["cells"]["digits|baseline|0"]
    table = more["table"]["digits"]
    assert table["baseline"]["opened"][0] == 0
    assert table["baseline"]["points over the baseline"][0] == 0
    assert set(table) == {"baseline", "+ DQN with EXPAND"}


@pytest.mark.slow
def test_policy_wins(tmp_path: Path) -> None:
    plot = tmp_path / "wins.png"
    record = run(tmp_path, "policy_wins", "--runs", tmp_path / "runs", "--seeds", "0", "--plot", plot, "--", *TINY)
    assert 0.4 < record["blank"] < 0.6
    assert len(record["learned"]) > 5
    assert plot.stat().st_size > 10_000


@pytest.mark.slow
def test_adaptive_inference_and_the_learned_policy(tmp_path: Path) -> None:
    where = tmp_path / "run"
    command = [sys.executable, "-m", "trm_cli.main", "train", "--config", "configs/quickstart.yaml", *TINY]
    command += [f"training.run_dir={where}", "arch.H_cycles=2", "arch.enable_adaptive_hcycles=true"]
    environment = {**os.environ, "TRM_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    record = run(tmp_path, "adaptive_inference", where, "--repetitions", "3")
    assert record["all samples"]["steps"]["all"] == record["T"]
    assert record["easy half"]["cycles"]["all"] == 2 * record["T"]
    policy = run(tmp_path, "learned_policy", "--run", f"digits={where}")
    assert policy["digits"]["seeds"] == 1


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
