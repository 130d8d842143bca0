"""Cross-validation of the quickstart: learned policy against random selection, a confidence threshold and an SVM.

    python -m benchmarks.quickstart_folds --out benchmarks/results/quickstart_folds.json [--unshuffled] [--jobs 2]

Five stratified folds of the 1,797 digits, one seed per fold; every digit is a test digit once. Trains through the real
command line (`trm train --config configs/quickstart.yaml`), evaluates the saved weights, and prints one JSON document.
Figures pool the test digits of all folds; intervals and tests are over digits.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import publish
from benchmarks.runs import ROOT, at_once, trm

PRICE_FACTORS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
THRESHOLDS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998)
RANDOM_DRAWS = 10


def train_fold(fold: int, shuffle: bool, folder: Path, threads: int, overrides: list[str]) -> dict[str, Any]:
    """Train one fold in a separate process."""
    run = folder / f"fold{fold}"
    settings = [
        f"training.run_dir={run}",
        f"training.seed={fold}",
        f"training.threads={threads}",
        f"data.build.fold={fold}",
        f"data.build.shuffle={str(shuffle).lower()}",
        *overrides,
    ]
    began = time.perf_counter()
    trm("train", "--config", ROOT / "configs/quickstart.yaml", *settings, threads=threads)
    return {"run": str(run), "seconds": round(time.perf_counter() - began, 1)}


def evaluate_fold(run: Path) -> dict[str, Any]:
    """Per-digit results of every policy on the fold's test digits."""
    import torch

    from trm_core.data.store import open_capsules
    from trm_core.evaluation.load import load_run
    from trm_core.evaluation.policies import FixedPolicy, LearnedPolicy, RandomPolicy, ThresholdPolicy
    from trm_core.evaluation.report import EvaluationData, Evaluator

    loaded = load_run(run, torch.device("cpu"))
    file = open_capsules(loaded.data["eval"]["path"])
    evaluator = Evaluator(loaded.model, loaded.config, EvaluationData(file, "test"))
    level = loaded.model.price_level

    def rows(policy: Any) -> dict[str, list[float]]:
        outcome = evaluator.run(policy)
        return {
            "exact": outcome.exact.double().tolist(),
            "opened": outcome.opened.double().tolist(),
            "steps": outcome.steps.double().tolist(),
        }

    chosen = evaluator.run(LearnedPolicy(level))
    draws = [
        evaluator.run(RandomPolicy(chosen.actions, chosen.counts, level, seed=seed)).exact.double()
        for seed in range(RANDOM_DRAWS)
    ]
    result = {
        "learned": rows(LearnedPolicy(level)),
        "random": {"exact": torch.stack(draws).mean(0).tolist(), "first": draws[0].tolist()},
        "never": rows(FixedPolicy(False, level, "never")),
        "all": rows(FixedPolicy(True, level, "all")),
    }
    result["learned_curve"] = {str(f): rows(LearnedPolicy(level * f)) for f in PRICE_FACTORS}
    result["threshold_curve"] = {str(c): rows(ThresholdPolicy(c, level)) for c in THRESHOLDS}
    result["svm"] = svm(file)
    return result


def svm(file: Any) -> dict[str, list[float]]:
    """Results of an RBF SVM (with scikit-learn's own settings for these digits), trained on all detail and on the
    sketches of the unshifted digits.
    """
    from sklearn.svm import SVC

    train, test = (file.read(split, slice(0, file.rows[split])) for split in ("train", "test"))
    # Shifted copies follow their originals; the first copy of each source row is the original.
    _, first = np.unique(train["ids"], return_index=True)
    out = {}
    for name, field in (("all", "children"), ("never", "sketches")):
        x, y = train[field][first].reshape(len(first), -1), train["labels"][first]
        model = SVC(gamma=0.001 * 256, C=10).fit(x.astype(np.float64), y)
        predicted = model.predict(test[field].reshape(len(test["labels"]), -1).astype(np.float64))
        out[name] = (predicted == test["labels"]).astype(float).tolist()
    return out


def pooled(folds: list[dict[str, Any]], *path: str) -> np.ndarray:
    """One figure for every digit, over all folds."""
    values = []
    for fold in folds:
        node: Any = fold
        for key in path:
            node = node[key]
        values.append(np.asarray(node))
    return np.concatenate(values)


def summary(folds: list[dict[str, Any]]) -> dict[str, Any]:
    """The table, the paired test and the distance between the two curves."""
    from scipy.stats import binomtest, ttest_rel

    def line(*path: str) -> dict[str, float]:
        exact = pooled(folds, *path, "exact")
        interval = binomtest(int(exact.sum()), len(exact)).proportion_ci(method="wilson")
        return {
            "accuracy": round(100 * exact.mean(), 2),
            "low": round(100 * interval.low, 2),
            "high": round(100 * interval.high, 2),
            "opened": round(pooled(folds, *path, "opened").mean(), 3),
            "steps": round(pooled(folds, *path, "steps").mean(), 3),
        }

    learned, random = pooled(folds, "learned", "exact"), pooled(folds, "random", "exact")
    first = pooled(folds, "random", "first")
    better, worse = int(((learned == 1) & (first == 0)).sum()), int(((learned == 0) & (first == 1)).sum())
    curves = {
        name: {key: line(f"{name}_curve", key) for key in folds[0][f"{name}_curve"]}
        for name in ("learned", "threshold")
    }
    return {
        "digits": len(learned),
        "learned": line("learned"),
        "random, as many opened": mean_interval(random) | {"draws": RANDOM_DRAWS},
        "never": line("never"),
        "all": line("all"),
        "svm, all pixels": round(100 * pooled(folds, "svm", "all").mean(), 2),
        "svm, sketches": round(100 * pooled(folds, "svm", "never").mean(), 2),
        "learned minus random": {
            "points": round(100 * float((learned - random).mean()), 2),
            "paired_t_p": float(ttest_rel(learned, random).pvalue),
            "first_draw": {
                "better": better,
                "worse": worse,
                "mcnemar_p": float(binomtest(better, max(better + worse, 1)).pvalue),
            },
        },
        "curves": curves,
        "learned curve minus threshold curve": compare_curves(curves["learned"], curves["threshold"]),
    }


def mean_interval(shares: np.ndarray) -> dict[str, float]:
    """Mean and 95 % interval, in percent, of each digit's share of right answers over draws."""
    mean, half = float(shares.mean()), 1.96 * float(shares.std(ddof=1)) / len(shares) ** 0.5
    return {
        "accuracy": round(100 * mean, 2),
        "low": round(100 * (mean - half), 2),
        "high": round(100 * (mean + half), 2),
    }


def compare_curves(learned: dict[str, Any], threshold: dict[str, Any]) -> dict[str, Any]:
    """Learned minus threshold accuracy at equal numbers of opened capsules, where the curves overlap.

    Between its points the threshold policy is interpolated linearly (which mixing two thresholds at random attains);
    beyond its last point it keeps that accuracy.
    """
    points = sorted((p["opened"], p["accuracy"]) for p in threshold.values())
    x, y = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    differences = {
        key: round(float(p["accuracy"] - np.interp(p["opened"], x, y)), 2)
        for key, p in learned.items()
        if p["opened"] >= x[0]
    }
    if not differences:  # the curves do not overlap: a model that has learned nothing
        return {"by_price_factor": {}, "lowest": None, "mean": None}
    values = list(differences.values())
    return {"by_price_factor": differences, "lowest": min(values), "mean": round(float(np.mean(values)), 2)}


def draw(record: dict[str, Any], path: Path) -> None:
    """The pooled curves, drawn as `trm eval --plot` draws one run's."""
    from trm_core.evaluation.plot import plot_pareto

    def point(policy: str, line: dict[str, float]) -> dict[str, Any]:
        shares = {name: line[name] / 100 for name in ("accuracy", "low", "high")}
        return {"policy": policy, "spent": line["opened"], "rows": record["digits"], **shares}

    random = {**record["random, as many opened"], "opened": record["learned"]["opened"]}
    plot_pareto(
        {
            "data": {"split": "test"},
            "curves": {
                name: [point(name, line) for line in curve.values()] for name, curve in record["curves"].items()
            },
            "scores": [point("never", record["never"]), point("random", random)],
        },
        path,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/quickstart_folds"))
    parser.add_argument("--unshuffled", action="store_true", help="contiguous folds: other writers in the test fold")
    parser.add_argument("--jobs", type=int, default=1, help="folds trained at once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--plot", type=Path, help="draw the curves into this file")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    folder = arguments.runs / ("unshuffled" if arguments.unshuffled else "shuffled")

    def job(fold: int) -> dict[str, Any]:
        return train_fold(fold, not arguments.unshuffled, folder, arguments.threads, arguments.overrides)

    runs = at_once(job, arguments.folds, arguments.jobs)
    folds = [evaluate_fold(Path(run["run"])) for run in runs]
    record = {"shuffled": not arguments.unshuffled, "jobs": arguments.jobs, "runs": runs, **summary(folds)}
    if arguments.plot is not None:
        draw(record, arguments.plot)
    publish(record, arguments.out)


if __name__ == "__main__":
    main()
