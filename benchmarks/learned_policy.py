"""How far the learned policy gets from opening nothing towards opening everything, and how far above a random choice.

    python -m benchmarks.learned_policy --out out.json --run digits=runs/a --run digits=runs/b ... --run sms=runs/c ...
        [--price sms=0.05]

Each run is one seed of a data set, trained by `trm train`. On the test split, at the run's middle price level or at
that of --price:

    way    (learned - never) / (all - never), with the number of capsules it opens as a share of what `all` opens
    gap    (learned - random) / (all - random), where random opens as many capsules at the same steps

Figures are means over seeds with 95 % intervals (Student's t). Shares are ratios of mean differences, because for a
single seed they are meaningless if random does as well as all. They have no intervals of their own; those of the
differences are given beside them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import publish
from benchmarks.runs import interval
from trm_core.evaluation.evaluate import EvalRequest, evaluate_run


def one_run(path: Path, prices: list[float]) -> dict[str, float]:
    """The figures of one seed."""
    names = ["learned", "threshold", "never", "all", "random"]
    record = evaluate_run(path, EvalRequest(policies=names, split="test", prices=prices))
    scores = {score["policy"]: score for score in record["scores"]}
    accuracy = {name: 100 * score["accuracy"] for name, score in scores.items()}
    return {
        **{f"accuracy, {name}": value for name, value in accuracy.items()},
        "opened": scores["learned"]["opened"],
        "opened, threshold": scores["threshold"]["opened"],
        "steps": scores["learned"]["steps"],
        "share opened, %": 100 * scores["learned"]["opened"] / scores["all"]["opened"],
        "learned - never": accuracy["learned"] - accuracy["never"],
        "all - never": accuracy["all"] - accuracy["never"],
        "learned - random": accuracy["learned"] - accuracy["random"],
        "all - random": accuracy["all"] - accuracy["random"],
    }


def share(part: float, whole: float) -> float | None:
    """The share in percent; None if there is nothing to gain."""
    return round(100 * part / whole, 1) if whole else None


def summary(seeds: list[dict[str, float]]) -> dict[str, Any]:
    """Means with intervals, and the two shares of the means."""
    mean = {name: float(np.mean([seed[name] for seed in seeds])) for name in seeds[0]}
    return {
        "seeds": len(seeds),
        "way, %": share(mean["learned - never"], mean["all - never"]),
        "gap, %": share(mean["learned - random"], mean["all - random"]),
        "mean, half width": {
            name: [v if v is None else round(v, 3) for v in interval([s[name] for s in seeds])] for name in mean
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run", action="append", required=True, metavar="DATASET=RUN")
    parser.add_argument("--price", action="append", default=[], metavar="DATASET=LEVEL")
    arguments = parser.parse_args()
    prices = {name: [float(level)] for name, _, level in (entry.partition("=") for entry in arguments.price)}
    runs: dict[str, list[dict[str, float]]] = {}
    for dataset, _, path in (entry.partition("=") for entry in arguments.run):
        runs.setdefault(dataset, []).append(one_run(Path(path), prices.get(dataset, [])))
    record = {dataset: {"price": prices.get(dataset), **summary(seeds)} for dataset, seeds in runs.items()}
    publish(record, arguments.out)


if __name__ == "__main__":
    main()
