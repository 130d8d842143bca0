"""What each part of the pipeline adds: a cumulative ablation on digits, SMS and ARC grids as capsules.

    python -m benchmarks.ablation --out benchmarks/results/ablation.json --sms sms.tsv --arc challenges.json [--jobs 2]

Rows: a recursive model that halts by its halt logit and sees only sketches -> + adaptive H-cycles -> + DQN with EXPAND
-> + hierarchical attention -> + memory bank -> + concepts. Every cell (data set, row, seed) is one `trm train` followed
by one `trm eval` on the test split, in separate processes, and is written to --out as soon as it is done; when started
again, the benchmark keeps finished cells of the same config. Accuracy is that of the policy that the row learns (`act`
or `learned`), at the middle price.
Intervals: 95 %, Student's t over seeds. The time of a cell is divided by that of the baseline with the same seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks.runs import ROOT, at_once, interval, trm

SKETCHES_ONLY = ["dqn.enabled=false", "arch.enable_capsule_expansion=false", "arch.q_head_num_actions=2"]
WITH_POLICY = ["dqn.enabled=true", "arch.enable_capsule_expansion=true"]
ROWS: dict[str, list[str]] = {
    "baseline": [],
    "+ adaptive H-cycles": ["arch.enable_adaptive_hcycles=true"],
    "+ DQN with EXPAND": [],
    "+ hierarchical attention": ["arch.enable_hierarchical_attention=true"],
    "+ memory": ["memory.enabled=true", "memory.capacity=1024", "memory.num_heads=4"],
    "+ concepts": ["arch.enable_concepts=true"],
}
FIRST_WITH_POLICY = 2
COMMON = ["arch.H_cycles=2", "training.threads=1", "training.eval_interval=100000", "training.log_interval=50"]


def overrides_of(row: str, steps: int, seed: int, run: Path) -> list[str]:
    """The settings of a row: its own and those of all rows before it."""
    names = list(ROWS)
    place = names.index(row)
    settings = [setting for name in names[: place + 1] for setting in ROWS[name]]
    policy = place >= FIRST_WITH_POLICY
    learning = [f"training.predictor_steps={steps * 2 // 3}"] if policy else ["training.predictor_steps=null"]
    return [
        *COMMON,
        *(WITH_POLICY if policy else SKETCHES_ONLY),
        *settings,
        *learning,
        f"training.total_steps={steps}",
        f"dqn.epsilon_decay={steps * 2 // 3}",
        f"training.seed={seed}",
        f"training.run_dir={run}",
    ]


def run_cell(config: str, data: list[str], row: str, steps: int, seed: int) -> dict[str, Any]:
    """Train and evaluate one cell."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        trm("train", "--config", str(ROOT / config), *data, *overrides_of(row, steps, seed, run), "--json")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        rates = [line["train/steps_per_sec"] for line in lines if "train/steps_per_sec" in line]
        policy = "learned" if list(ROWS).index(row) >= FIRST_WITH_POLICY else "act"
        names = f"{policy},never,all" if policy == "learned" else f"{policy},never"
        began = time.perf_counter()
        record = json.loads(trm("eval", str(run), "--split", "test", "--policy", names, "--json"))
        seconds = time.perf_counter() - began
    keep = ("accuracy", "exact_accuracy", "loss", "opened", "steps", "cycles", "flops", "rows")
    scores = {score["policy"]: {name: score[name] for name in keep} for score in record["scores"]}
    return {
        "config": fingerprint(config),
        "policy": policy,
        "scores": scores,
        "chance": record["chance"]["majority"],
        "seconds_per_step": 1.0 / rates[-1],
        "eval_seconds": seconds,
    }


def fingerprint(config: str) -> str:
    """Hash of the files that make up a config: cells of another config are measured anew."""
    parts = [(ROOT / name).read_bytes() for name in (config, "configs/small.yaml")]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def summary(cells: dict[str, dict[str, Any]], datasets: list[str], seeds: list[int]) -> dict[str, Any]:
    """The table: for each data set and row, means and intervals over the finished seeds."""
    table: dict[str, Any] = {}
    for dataset in datasets:
        baseline = {seed: cells.get(f"{dataset}|baseline|{seed}") for seed in seeds}
        for row in ROWS:
            done = {seed: cells[key] for seed in seeds if (key := f"{dataset}|{row}|{seed}") in cells}
            if not done:
                continue
            scores = [cell["scores"][cell["policy"]] for cell in done.values()]
            line = {
                "accuracy": interval([100 * score["accuracy"] for score in scores]),
                "opened": interval([score["opened"] for score in scores]),
                "steps": interval([score["steps"] for score in scores]),
                "cycles": interval([score["cycles"] for score in scores]),
                "seeds": len(done),
            }
            paired = [(cell, baseline[seed]) for seed, cell in done.items()]
            pairs = [(cell, base) for cell, base in paired if base is not None]
            line["time of a step over the baseline's"] = interval(
                [cell["seconds_per_step"] / base["seconds_per_step"] for cell, base in pairs]
            )
            line["points over the baseline"] = interval(
                [
                    100 * (cell["scores"][cell["policy"]]["accuracy"] - base["scores"][base["policy"]]["accuracy"])
                    for cell, base in pairs
                ]
            )
            table.setdefault(dataset, {})[row] = line
            if all("all" in cell["scores"] for cell in done.values()):
                line["everything open"] = interval([100 * cell["scores"]["all"]["accuracy"] for cell in done.values()])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sms", type=Path, help="the SMS Spam Collection, label<TAB>text")
    parser.add_argument("--arc", type=Path, help="an ARC challenges file, its solutions beside it")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=900, help="training steps of a cell of digits and SMS")
    parser.add_argument("--arc-steps", type=int, default=1500, help="of ARC grids, which need more")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    arguments = parser.parse_args()
    datasets: dict[str, tuple[str, list[str], int]] = {"digits": ("configs/quickstart.yaml", [], arguments.steps)}
    if arguments.sms:
        datasets["sms"] = ("configs/sms.yaml", [f"data.source={arguments.sms}"], arguments.steps)
    if arguments.arc:
        datasets["arc"] = ("configs/arc_capsules.yaml", [f"data.source={arguments.arc}"], arguments.arc_steps)

    record: dict[str, Any] = {"steps": {name: steps for name, (_, _, steps) in datasets.items()}, "cells": {}}
    if arguments.out.exists():
        known = json.loads(arguments.out.read_text())
        for name, steps in known["steps"].items():
            if record["steps"].setdefault(name, steps) != steps:
                raise SystemExit(
                    f"{arguments.out} holds cells of {name} with {steps} steps, not {record['steps'][name]}"
                )
        record["cells"] = known["cells"]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    cells, lock = record["cells"], Lock()
    # Seed by seed, so that a table stopped early has complete seeds.
    todo = [
        (dataset, row, seed)
        for seed in arguments.seeds
        for dataset in datasets
        for row in arguments.rows
        if cells.get(f"{dataset}|{row}|{seed}", {}).get("config") != fingerprint(datasets[dataset][0])
    ]

    def job(cell: tuple[str, str, int]) -> None:
        dataset, row, seed = cell
        config, data, steps = datasets[dataset]
        found = run_cell(config, data, row, steps, seed)
        with lock:
            cells[f"{dataset}|{row}|{seed}"] = found
            record["table"] = summary(cells, list(datasets), arguments.seeds)
            temporary = arguments.out.with_suffix(".tmp")
            temporary.write_text(json.dumps(record, indent=1) + "\n")
            temporary.replace(arguments.out)
            done = found["scores"][found["policy"]]
            print(f"{dataset} | {row} | seed {seed}: {done['accuracy']:.4f}, {done['opened']:.2f}", file=sys.stderr)

    at_once(job, todo, arguments.jobs)
    print(json.dumps(record.get("table", {}), indent=1))


if __name__ == "__main__":
    main()
