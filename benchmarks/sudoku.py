"""Solving Sudokus on a CPU: how many, and after how long.

    python -m benchmarks.sudoku small --seeds 3 [--runs FOLDER] --out benchmarks/results/sudoku_small.json
    python -m benchmarks.sudoku curve RUN --out benchmarks/results/sudoku9.json --plot docs/images/sudoku9.png
    python -m benchmarks.sudoku halting RUN... --out benchmarks/results/halting.json

`small` builds 3,000 Sudokus of 4 x 4 and of 6 x 6 (split so that symmetric copies stay together), trains
configs/sudoku4_cpu.yaml and sudoku6_cpu.yaml with several seeds, `--jobs` at once with one thread each, and reports how
long the whole command took and how many held-out puzzles are solved, by rows that halt (`act`) and with all steps
(`never`); `--runs` keeps data and runs. `curve` evaluates the checkpoints of a finished run: exact and cell accuracy on
all held-out puzzles, with 95 % intervals, against the time since the run began. `halting` evaluates finished runs with
several values of `arch.halt_threshold`, which does not affect training.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import loaded, scores_by_checkpoint
from benchmarks.record import publish
from benchmarks.runs import ROOT, at_once, interval, trm
from trm_core.evaluation.report import Evaluator
from trm_core.training.checkpoint_folders import MANIFEST
from trm_core.training.run_dir import CONFIG

THRESHOLDS = (0.0, 1.0, 2.0, 3.0, 4.0)
BUILD = {"4": ["data.puzzles.clues=6"], "6": []}


def small(sizes: list[str], seeds: int, jobs: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for size in sizes:
        settings = BUILD[size]
        data = folder / f"data{size}"
        counts = ["--count", "3000", "--augmentations", "20"]
        trm("build-puzzles", "sudoku", "--size", size, *counts, *settings, "--out", data)
        runs = at_once(partial(train, size, data, folder), range(seeds), jobs)
        means = {name: interval([run[name]["exact_accuracy"] for run in runs]) for name in ("act", "never")}
        found[f"{size} x {size}"] = {"jobs": jobs, "runs": runs, "exact": means}
    return found


def train(size: str, data: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Train one run; what it solves, by policy."""
    began = time.monotonic()
    config = ROOT / "configs" / f"sudoku{size}_cpu.yaml"
    run = folder / f"run{size}-{seed}"
    changes = [f"data.path={data}", f"training.run_dir={run}", f"training.seed={seed}"]
    text = trm("train", "--config", config, *changes, "--json")
    minutes = (time.monotonic() - began) / 60
    scores = {score["policy"]: {k: score[k] for k in SHOWN} for score in json.loads(text)["scores"]}
    exact = {name: f"{100 * score['exact_accuracy']:.1f} %" for name, score in scores.items()}
    print(f"{size} x {size}, seed {seed}: exact {exact} after {minutes:.1f} min", file=sys.stderr)
    return {"seed": seed, "minutes": minutes, **scores}


SHOWN = ("exact_accuracy", "exact_low", "exact_high", "accuracy", "low", "high", "steps", "rows")


def curve(run: Path) -> list[dict[str, Any]]:
    """A record for each checkpoint, oldest first."""
    began = (run / CONFIG).stat().st_mtime
    found = []
    for folder, step, table in scores_by_checkpoint(run, ["act", "never"]):
        scores = {score.policy: {k: getattr(score, k) for k in SHOWN} for score in table}
        minutes = ((folder / MANIFEST).stat().st_mtime - began) / 60
        found.append({"step": step, "minutes": minutes, **scores})
        print(f"step {step}, {minutes:.0f} min: {100 * scores['never']['exact_accuracy']:.1f} % exact", file=sys.stderr)
    return found


def halting(runs: list[Path]) -> list[dict[str, Any]]:
    """Scores of each run's newest checkpoint, by `arch.halt_threshold` and with all steps."""
    found = []
    for run in runs:
        trained, data = loaded(run)
        scores = {}
        for threshold in (*THRESHOLDS, math.inf):
            trained.model.halt_above = threshold
            (score,) = Evaluator(trained.model, trained.config, data).table(["act"])
            name = "all steps" if threshold == math.inf else f"{threshold:g}"
            scores[name] = {k: getattr(score, k) for k in SHOWN}
            print(f"{run}, {name}: {100 * score.exact_accuracy:.1f} % exact, {score.steps:.2f} steps", file=sys.stderr)
        found.append({"cells": data.file.num_capsules, "training steps": trained.step, "scores": scores})
    return found


def plot(records: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    minutes = [record["minutes"] for record in records]
    for name, mean, low, high in (
        ("cells right", "accuracy", "low", "high"),
        ("whole puzzles solved", "exact_accuracy", "exact_low", "exact_high"),
    ):
        values = [[100 * record["never"][key] for record in records] for key in (mean, low, high)]
        (line,) = axis.plot(minutes, values[0], marker="o", markersize=4, label=name)
        axis.fill_between(minutes, values[1], values[2], alpha=0.2, color=line.get_color(), linewidth=0)
    axis.set(xlabel="minutes of training", ylabel="% of held-out puzzles", ylim=(0, 100), xlim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    few = kinds.add_parser("small")
    few.add_argument("--seeds", type=int, default=3)
    few.add_argument("--jobs", type=int, default=1, help="runs at once")
    few.add_argument("--sizes", nargs="*", choices=BUILD, default=list(BUILD))
    few.add_argument("--runs", type=Path, help="keep data and runs in this folder")
    long = kinds.add_parser("curve")
    long.add_argument("run", type=Path)
    long.add_argument("--plot", type=Path)
    halts = kinds.add_parser("halting")
    halts.add_argument("runs", type=Path, nargs="+")
    for part in (few, long, halts):
        part.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    record: Any
    if arguments.kind == "small":
        with tempfile.TemporaryDirectory() as folder:
            record = small(arguments.sizes, arguments.seeds, arguments.jobs, arguments.runs or Path(folder))
    elif arguments.kind == "halting":
        record = halting(arguments.runs)
    else:
        record = curve(arguments.run)
        if arguments.plot:
            plot(record, arguments.plot)
    publish(record, arguments.out)


if __name__ == "__main__":
    main()
