"""How far the learned policy gets from opening nothing to opening everything, and how far above a random choice.

    python -m benchmarks.learned_policy --out out.json --run digits=runs/a --run digits=runs/b ... --run sms=runs/c ...

Each run is one seed of a data set, trained by `trm train`. On the test split, at the middle price:

    way    (learned - never) / (all - never), with the share of the capsules that it opens (of those `all` opens)
    gap    (learned - random) / (all - random), where random opens as many, at the same moments

Means over seeds with 95 % intervals (Student's t).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.runs import interval
from trm_core.evaluation.evaluate import EvalRequest, evaluate_run


def one_run(path: Path) -> dict[str, float]:
    """The figures of one seed."""
    record = evaluate_run(path, EvalRequest(policies=["learned", "threshold", "never", "all", "random"], split="test"))
    scores = {score["policy"]: score for score in record["scores"]}
    accuracy = {name: score["accuracy"] for name, score in scores.items()}
    return {
        **{f"accuracy, {name}": 100 * value for name, value in accuracy.items()},
        "opened": scores["learned"]["opened"],
        "opened, threshold": scores["threshold"]["opened"],
        "steps": scores["learned"]["steps"],
        "share opened, %": 100 * scores["learned"]["opened"] / scores["all"]["opened"],
        "way, %": 100 * (accuracy["learned"] - accuracy["never"]) / (accuracy["all"] - accuracy["never"]),
        "gap, %": 100 * (accuracy["learned"] - accuracy["random"]) / (accuracy["all"] - accuracy["random"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run", action="append", required=True, metavar="DATASET=RUN")
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {}
    for entry in arguments.run:
        dataset, _, path = entry.partition("=")
        runs.setdefault(dataset, []).append(one_run(Path(path)))
    record: dict[str, Any] = {
        dataset: {
            "seeds": len(seeds),
            "mean, half width": {
                name: [v if v is None else round(v, 3) for v in interval([s[name] for s in seeds])] for name in seeds[0]
            },
        }
        for dataset, seeds in runs.items()
    }
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
