"""A setting where a learned policy beats a confidence threshold: detail that is sometimes worthless.

    python -m benchmarks.policy_wins --out benchmarks/results/policy_wins.json [--seeds 0 1 2] [--plot curves.png]

The digits as 4 capsules of 4 x 4 pixels, the sketch their mean. In a share of the samples (--broken) detail is blank:
all pixels of a capsule are its mean, as an unreadable page or a dead sensor would be. Nothing in the sketch tells;
the first opened capsule does. A threshold never becomes confident there and buys everything, at every level of
confidence. A learned policy can see that buying does not help and answer.

Same weights, same `cmi` selection, same samples: the learned policy over its prices against the threshold over its
levels, accuracy against price units spent. The threshold's curve is interpolated at the learned policy's spending (its
best level is so chosen on the test samples, to its favour). Intervals: 95 % bootstrap over samples, all seeds together.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
K, M = 4, 16
FACTORS = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)  # the prices that it was trained on
LEVELS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
TRAINING = [
    "arch.max_steps=6",
    "dqn.expand_count=1",
    "dqn.expansion_cost_per_child=0.004",
    "dqn.price_spread=10",
    "dqn.lr=2e-3",
    "training.total_steps=3400",
    "training.predictor_steps=1400",
    "dqn.epsilon_decay=1400",
    "training.eval_interval=100000",
    "training.threads=1",
]


def trm(*arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "trm_cli.main", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stderr[-2000:]}")


def write_broken(source: Path, target: Path, share: float) -> Path:
    """`source` with blank detail in a share of its samples, drawn by the number of the original sample, so that warped
    copies of one digit are broken together.
    """
    from trm_core.data.store import CapsuleWriter, open_capsules

    file = open_capsules(source)
    broken = np.random.default_rng(0).random(10_000) < share
    writer = CapsuleWriter(
        target, num_capsules=file.num_capsules, dim=file.dim, num_children=file.num_children, checksum_dim=0,
        label_rank=1, dtype="float32",
    )  # fmt: skip
    with writer:
        for split, rows in file.rows.items():
            if not rows:
                continue
            fields = file.read(split, slice(0, rows))
            children = fields["children"].astype(np.float32)
            blank = broken[fields["ids"]][:, None, None, None]
            children = np.where(blank, children.mean(2, keepdims=True), children)
            writer.append(
                split,
                {"sketches": fields["sketches"].astype(np.float32), "children": children, "labels": fields["labels"]},
            )
        writer.close({"task": "classes", "num_classes": file.num_classes, "kind": "arrays"})
    return target


def evaluate(run: Path) -> dict[str, Any]:
    """Accuracy, spending and steps of every test sample under every setting."""
    import torch

    from trm_core.data.store import open_capsules
    from trm_core.evaluation.load import load_run
    from trm_core.evaluation.policies import FixedPolicy, LearnedPolicy, ThresholdPolicy
    from trm_core.evaluation.report import EvaluationData, Evaluator

    torch.set_num_threads(1)
    loaded = load_run(run, torch.device("cpu"))
    file = open_capsules(loaded.data["eval"]["path"])
    evaluator = Evaluator(loaded.model, loaded.config, EvaluationData(file, "test"))
    level = loaded.model.price_level

    def samples(policy: Any) -> dict[str, np.ndarray]:
        outcome = evaluator.run(policy)
        return {
            "accuracy": outcome.accuracy.double().numpy(),
            "spent": outcome.spent.double().numpy(),
            "steps": outcome.steps.double().numpy(),
        }

    children = file.read("test", slice(0, file.rows["test"]))["children"].astype(np.float32)
    return {
        "learned": {factor: samples(LearnedPolicy(level * factor)) for factor in FACTORS},
        "threshold": {c: samples(ThresholdPolicy(c, level)) for c in LEVELS},
        "never": samples(FixedPolicy(False, level, "never")),
        "all": samples(FixedPolicy(True, level, "all")),
        "broken": children.std(2).max((1, 2)) < 1e-6,
    }


def pool(seeds: list[dict[str, Any]], policy: str) -> dict[str, np.ndarray]:
    """[settings, samples of all seeds] by quantity."""
    settings = list(seeds[0][policy])
    return {
        name: np.stack([np.concatenate([seed[policy][s][name] for seed in seeds]) for s in settings])
        for name in ("accuracy", "spent", "steps")
    }


def at_equal_spending(learned: dict[str, np.ndarray], threshold: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """[settings of learned] accuracy minus that of the threshold's curve at the same spending, over these samples; NaN
    where the threshold's curve does not reach.
    """
    x, y = threshold["spent"][:, rows].mean(1), threshold["accuracy"][:, rows].mean(1)
    order = np.argsort(x)
    at = learned["spent"][:, rows].mean(1)
    other = np.interp(at, x[order], y[order])
    return np.where((at >= x.min()) & (at <= x.max()), learned["accuracy"][:, rows].mean(1) - other, np.nan)


def summary(seeds: list[dict[str, Any]], draws: int = 1000) -> dict[str, Any]:
    learned, threshold = pool(seeds, "learned"), pool(seeds, "threshold")
    samples = learned["accuracy"].shape[1]
    random = np.random.default_rng(0)
    everyone = np.arange(samples)
    difference = at_equal_spending(learned, threshold, everyone)
    resampled = np.array(
        [at_equal_spending(learned, threshold, random.integers(samples, size=samples)) for _ in range(draws)]
    )
    low, high = np.nanquantile(resampled, [0.025, 0.975], axis=0)
    broken = np.concatenate([seed["broken"] for seed in seeds])

    def lines(found: dict[str, np.ndarray], settings: tuple[float, ...]) -> list[dict[str, float]]:
        return [
            {
                "setting": setting,
                "accuracy": float(found["accuracy"][i].mean()),
                "spent": float(found["spent"][i].mean()),
                "spent on blank samples": float(found["spent"][i][broken].mean()),
                "spent on others": float(found["spent"][i][~broken].mean()),
                "steps": float(found["steps"][i].mean()),
            }
            for i, setting in enumerate(settings)
        ]

    def plain(name: str) -> float:
        return float(np.concatenate([seed[name]["accuracy"] for seed in seeds]).mean())

    return {
        "seeds": len(seeds),
        "samples": samples,
        "blank": float(broken.mean()),
        "never": plain("never"),
        "all": plain("all"),
        "learned": lines(learned, FACTORS),
        "threshold": lines(threshold, LEVELS),
        "learned minus threshold at equal spending, points": [
            None
            if np.isnan(value)
            else {"factor": f, "mean": 100 * float(value), "low": 100 * float(a), "high": 100 * float(b)}
            for f, value, a, b in zip(FACTORS, difference, low, high, strict=True)
        ],
    }


def draw(record: dict[str, Any], path: Path) -> None:
    """Both curves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    for name, color, marker in (("learned", "tab:blue", "o"), ("threshold", "tab:orange", "s")):
        points = sorted((line["spent"], 100 * line["accuracy"]) for line in record[name])
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=4, label=name)
    axes.axhline(100 * record["all"], color="black", linewidth=0.8, linestyle="--", label="everything opened")
    axes.set_xlabel("price units spent per sample (of 4)")
    axes.set_ylabel("accuracy, %")
    axes.set_title(f"digits, blank detail in {100 * record['blank']:.0f} % of the samples", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/policy_wins"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--broken", type=float, default=0.5, help="share of the samples whose detail is blank")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    base, data = arguments.runs / "digits.h5", arguments.runs / "broken.h5"
    if not base.exists():
        trm(
            "build-capsules", "digits", "--num-capsules", str(K), "--num-children", str(M), "--augment-warps", "8",
            "--validation", "0", "--test", "0.3", "--out", str(base),
        )  # fmt: skip
    if not data.exists():
        write_broken(base, data, arguments.broken)

    def job(seed: int) -> Path:
        run = arguments.runs / f"seed{seed}"
        if not (run / "evaluation.json").exists():
            settings = [f"data.path={data}", f"training.run_dir={run}", f"training.seed={seed}", "data.source=null"]
            trm("train", "--config", str(ROOT / "configs/quickstart.yaml"), *settings, *TRAINING, *arguments.overrides)
        return run

    with ThreadPoolExecutor(arguments.jobs) as pool_of_threads:
        runs = list(pool_of_threads.map(job, arguments.seeds))
    record = summary([evaluate(run) for run in runs])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    if arguments.plot is not None:
        draw(record, arguments.plot)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
