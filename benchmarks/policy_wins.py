"""A setting in which a learned policy beats a confidence threshold: detail that is worthless in some samples.

    python -m benchmarks.policy_wins --out benchmarks/results/policy_wins.json [--seeds 1 2 3 4] [--plot curves.png]

The digits as 8 capsules of 4 x 2 pixels; every sketch is the mean of the whole picture, so the answer has to be bought.
In a share of the samples (--blank) detail is blank: every pixel is that mean, as on an unreadable page. The sketch does
not reveal this, but the first opened capsule does. A threshold never becomes confident there and buys everything,
whatever its level. A learned policy can notice that buying does not help, and answer.

Accuracy against price units spent, with the same weights, `cmi` selection and samples, for: the learned policy over its
price factors; the threshold over its levels; and a rule that one could write by hand with hindsight, a threshold that
always halts after n capsules (`capped`, over levels and n). The settings of these rules are those on the upper hull of
their validation points; since a rule may randomise between two settings, its test points are joined by lines. Weights,
blank samples and exploration depend on the seed, the split does not. Intervals: 95 % bootstrap over seeds and digits,
keeping all policies of a digit together. Runs that are already in --runs are evaluated, not trained again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import publish
from benchmarks.runs import ROOT, trm
from trm_core.data.store import CapsuleWriter, open_capsules
from trm_core.dqn.actions import Action
from trm_core.evaluation.load import load_run
from trm_core.evaluation.policies import FixedPolicy, LearnedPolicy, Policy, Situation, ThresholdPolicy
from trm_core.evaluation.report import EvaluationData, Evaluator

QUADRANTS, K = 4, 8
FACTORS = (0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 10.0)
HEADLINE = 2.0  # the factor of the summary, chosen on validation digits with another seed
LEVELS = (0.0, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
CAPS = (1, 2, 3, 4, 5, 6, 7)
TRAINING = [
    "arch.max_steps=9",
    "dqn.expand_count=1",
    "dqn.expansion_cost_per_child=0.01",
    "dqn.price_spread=10",
    "dqn.reward_step_penalty=0.02",
    "training.total_steps=4400",
    "training.predictor_steps=2000",
    "dqn.epsilon_decay=1400",
    "training.eval_interval=100000",
    "training.threads=1",
]
Samples = dict[str, np.ndarray]  # accuracy, spent, steps: [settings, seeds, digits]


@dataclass
class CappedThreshold(ThresholdPolicy):
    """The threshold policy, except that it halts once `cap` capsules are open."""

    cap: int = 1

    def decide(self, now: Situation) -> tuple[Tensor, Tensor]:
        action, opened = super().decide(now)
        full = now.capsules.expanded.sum(1) >= self.cap
        return torch.where(full, Action.HALT, action), opened & ~full[:, None]


def write_blank(source: Path, target: Path, share: float, seed: int) -> None:
    """Write `source` (quadrants of 4 x 4 pixels) as half quadrants, with blank detail in a share of the samples.

    Blank samples are drawn by the number of the original digit, so that its warped copies are blank as well.
    """
    file = open_capsules(source)
    blank = np.random.default_rng(seed).random(10_000) < share
    shape = {"num_capsules": K, "dim": 1, "num_children": file.num_children * QUADRANTS // K}
    with CapsuleWriter(target, **shape, label_rank=1, dtype="float32") as writer:
        for split, rows in file.rows.items():
            fields = file.read(split, slice(0, rows))
            # The children of a quadrant are in row order, so its first half is its upper two rows.
            children = fields["children"].astype(np.float32).reshape(rows, K, -1, 1)
            mean = fields["sketches"].astype(np.float32).mean(1, keepdims=True)
            sketches = np.repeat(mean, K, axis=1)
            children = np.where(blank[fields["ids"]][:, None, None, None], sketches[:, :, None], children)
            writer.append(split, {"sketches": sketches, "children": children, "labels": fields["labels"]})
        writer.close({"task": "classes", "num_classes": file.num_classes, "kind": "arrays"})


def evaluate(run: Path, split: str) -> dict[str, Any]:
    """The samples of one run, {policy: {quantity: [settings, digits]}}, and which are blank [digits]."""
    torch.set_num_threads(1)
    loaded = load_run(run, torch.device("cpu"))
    file = open_capsules(loaded.data["eval"]["path"])
    evaluator = Evaluator(loaded.model, loaded.config, EvaluationData(file, split))
    level = loaded.model.price_level

    def samples(policies: list[Policy]) -> Samples:
        outcomes = [evaluator.run(policy) for policy in policies]
        return {
            name: torch.stack([getattr(outcome, name).double() for outcome in outcomes]).numpy()
            for name in ("accuracy", "spent", "steps")
        }

    children = file.read(split, slice(0, file.rows[split]))["children"].astype(np.float32)
    return {
        "learned": samples([LearnedPolicy(level * factor) for factor in FACTORS]),
        "threshold": samples([ThresholdPolicy(c, level) for c in LEVELS]),
        "capped": samples([CappedThreshold(c, level, cap=cap) for cap, c in capped_settings()]),
        "all": samples([FixedPolicy(True, level, "all")]),
        "blank": np.ptp(children, axis=(1, 2, 3)) < 1e-6,
    }


def capped_settings() -> list[tuple[int, float]]:
    return [(cap, c) for cap in CAPS for c in LEVELS]


def stacked(seeds: list[dict[str, Any]], policy: str) -> Samples:
    return {name: np.stack([seed[policy][name] for seed in seeds], 1) for name in ("accuracy", "spent", "steps")}


def upper_hull(spent: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Indices of the settings on the upper hull of the points (spent, accuracy), ordered by spending."""
    hull: list[int] = []
    for i in np.lexsort((-accuracy, spent)):
        if hull and accuracy[i] <= accuracy[hull[-1]]:
            continue  # costs as much or more, and is no better
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            turn = (spent[b] - spent[a]) * (accuracy[i] - accuracy[a]) - (accuracy[b] - accuracy[a]) * (
                spent[i] - spent[a]
            )
            if turn < 0:
                break
            hull.pop()
        hull.append(int(i))
    return np.array(hull)


def at_equal_spending(learned: Samples, rule: Samples, seeds: np.ndarray, digits: np.ndarray) -> np.ndarray:
    """[settings of learned]: accuracy minus that of the rule's curve at the same spending, over these seeds and digits.

    Beyond its last point the rule keeps the accuracy of that point.
    """
    here = np.ix_(seeds, digits)
    (x, y), (spent, accuracy) = (
        (s["spent"][:, *here].mean((1, 2)), s["accuracy"][:, *here].mean((1, 2))) for s in (rule, learned)
    )
    order = np.argsort(x)
    return accuracy - np.interp(spent, x[order], y[order])


def compare(learned: Samples, rule: Samples, draws: int = 2000) -> dict[str, Any]:
    """Compare learned with a rule's curve at every price factor and, for the headline factor, at equal accuracy."""
    _, seeds, digits = learned["accuracy"].shape
    random = np.random.default_rng(0)
    difference = at_equal_spending(learned, rule, np.arange(seeds), np.arange(digits))
    resampled = [
        at_equal_spending(learned, rule, random.integers(seeds, size=seeds), random.integers(digits, size=digits))
        for _ in range(draws)
    ]
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    each = [at_equal_spending(learned, rule, np.array([s]), np.arange(digits)) for s in range(seeds)]
    at = FACTORS.index(HEADLINE)
    order = np.argsort(rule["spent"].mean((1, 2)))
    y = np.maximum.accumulate(rule["accuracy"].mean((1, 2))[order])
    reached = learned["accuracy"][at].mean()
    needed = float(np.interp(reached, y, rule["spent"].mean((1, 2))[order])) if reached <= y[-1] else None
    return {
        "points at equal spending": [
            {"factor": f, "mean": 100 * float(d), "low": 100 * float(a), "high": 100 * float(b)}
            for f, d, a, b in zip(FACTORS, difference, low, high, strict=True)
        ],
        "headline of each seed": [100 * float(d[at]) for d in each],
        "spending at the headline's accuracy": {"learned": float(learned["spent"][at].mean()), "rule": needed},
    }


def lines(found: Samples, blank: np.ndarray, settings: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            "setting": setting,
            "accuracy": float(found["accuracy"][i].mean()),
            "spent": float(found["spent"][i].mean()),
            "spent on blank samples": float(found["spent"][i][blank].mean()),
            "accuracy on others": float(found["accuracy"][i][~blank].mean()),
            "spent on others": float(found["spent"][i][~blank].mean()),
            "steps": float(found["steps"][i].mean()),
        }
        for i, setting in enumerate(settings)
    ]


def summary(validation: list[dict[str, Any]], test: list[dict[str, Any]]) -> dict[str, Any]:
    blank = np.stack([seed["blank"] for seed in test])
    learned = stacked(test, "learned")
    record: dict[str, Any] = {
        "seeds": len(test),
        "test digits": blank.shape[1],
        "blank": float(blank.mean()),
        "headline factor": HEADLINE,
        "all": lines(stacked(test, "all"), blank, ["all"]),
        "learned": lines(learned, blank, list(FACTORS)),
    }
    for rule, settings in (("threshold", list(LEVELS)), ("capped", capped_settings())):
        tuned, found = stacked(validation, rule), stacked(test, rule)
        kept = upper_hull(tuned["spent"].mean((1, 2)), tuned["accuracy"].mean((1, 2)))
        chosen = {name: values[kept] for name, values in found.items()}
        record[rule] = lines(chosen, blank, [settings[i] for i in kept])
        record[f"learned against {rule}"] = compare(learned, chosen)
    return record


def draw(record: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    names = {"learned": "learned", "threshold": "threshold", "capped": "threshold, at most n capsules"}
    for (name, label), color, marker in zip(names.items(), ("tab:blue", "tab:orange", "tab:green"), "os^", strict=True):
        points = sorted((line["spent"], 100 * line["accuracy"]) for line in record[name])
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=4, label=label)
    axes.axhline(100 * record["all"][0]["accuracy"], color="black", linewidth=0.8, linestyle="--", label="all opened")
    axes.set_xlabel(f"price units spent per sample (of {K})")
    axes.set_ylabel("accuracy, %")
    axes.set_title(f"digits, blank detail in {100 * record['blank']:.0f} % of the samples", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/policy_wins"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--blank", type=float, default=0.4, help="share of the samples whose detail is blank")
    parser.add_argument("--plot", type=Path, help="draw the curves into this file")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    folder = arguments.runs.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "digits.h5"
    if not base.exists():
        trm(
            "build-capsules", "digits", "--num-capsules", str(QUADRANTS), "--num-children", "16",
            "--augment-warps", "8", "--validation", "0.15", "--test", "0.3", "--out", str(base),
        )  # fmt: skip
    runs = [folder / f"seed{seed}" for seed in arguments.seeds]
    for seed, run in zip(arguments.seeds, runs, strict=True):
        data = folder / f"blank{seed}.h5"
        if not data.exists():
            write_blank(base, data, arguments.blank, seed)
        if not (run / "evaluation.json").exists():
            settings = ["data.source=null", f"data.path={data}", f"training.run_dir={run}", f"training.seed={seed}"]
            trm("train", "--config", str(ROOT / "configs/quickstart.yaml"), *settings, *TRAINING, *arguments.overrides)
    record = summary(*([evaluate(run, split) for run in runs] for split in ("validation", "test")))
    if arguments.plot is not None:
        draw(record, arguments.plot)
    publish(record, arguments.out)


if __name__ == "__main__":
    main()
