"""Throughput of two processes (gloo) against one process with a single thread, at the same global batch.

    python -m benchmarks.ranks --out benchmarks/results/ranks.json [--pairs 5] [-- OVERRIDES...]

Whole runs through the real command line, in turn. Each gives the median of `train/samples_per_sec` over the second half
of its steps, which leaves out start-up. Needs two idle cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.record import publish
from benchmarks.runs import ROOT, trm
from benchmarks.timing import ratio

MODEL = ["arch.hidden_size=128", "arch.num_layers=2", "training.global_batch_size=128", "training.optimizer=adamatan2"]


def samples_per_second(run: Path, processes: int, steps: int, overrides: list[str]) -> float:
    several = ["--nproc", str(processes)] if processes > 1 else []
    schedule = [f"training.total_steps={steps}", "training.predictor_steps=null", "training.eval_interval=100000"]
    fixed = ["--config", ROOT / "configs/quickstart.yaml", f"training.run_dir={run}", "training.threads=1"]
    trm("train", *fixed, *schedule, *overrides, *several)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [line["train/samples_per_sec"] for line in lines if "train/samples_per_sec" in line]
    return median(rates[len(rates) // 2 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("overrides", nargs="*", default=[])
    arguments = parser.parse_args()
    overrides = [*MODEL, *arguments.overrides]
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(arguments.pairs):
            for processes, found in rates.items():
                run = Path(folder) / f"{pair}-{processes}"
                found.append(samples_per_second(run, processes, arguments.steps, overrides))
    record = {
        "overrides": overrides,
        "two over one": ratio(np.array(rates[2]), np.array(rates[1])),
        "samples per second": {str(processes): median(found) for processes, found in rates.items()},
    }
    publish(record, arguments.out)


if __name__ == "__main__":
    main()
