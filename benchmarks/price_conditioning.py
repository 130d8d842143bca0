"""One policy for every price against policies trained for a single price each.

    python -m benchmarks.price_conditioning --out benchmarks/results/price_conditioning.json [--jobs 2]
        [--config configs/quickstart.yaml] [--factors 1 10 100] -- data.build.fold={seed}

For every seed, one policy is trained as the config says (with a price per episode, drawn over the config's whole
spread), and one per factor with every episode at that factor times the config's price. Both are evaluated on the test
split at that price: accuracy, capsules opened, and the return that both maximise,

    return = terminal reward - step penalty * (steps - 1) - price * spent.

Differences are conditioned minus single, paired by seed; means with 95 % intervals (Student's t). `{seed}` in an
override is replaced by the seed. Existing runs are kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.record import publish
from benchmarks.runs import ROOT, at_once, interval, train, trm
from trm_core.config.load import load_config
from trm_core.config.schema import DQNConfig

FIGURES = ("accuracy, %", "opened", "steps", "return")


def judge(run: Path, dqn: DQNConfig, level: float | None = None) -> tuple[float, dict[str, float]]:
    """(price level, figures) of the learned policy on the test split, at a given level or the run's own."""
    price = [] if level is None else ["--price", repr(level)]
    record = json.loads(trm("eval", run, "--split", "test", "--policy", "learned", *price, "--json"))
    (score,) = record["scores"]
    right, wrong = dqn.reward_terminal_correct, dqn.reward_terminal_incorrect
    terminal = wrong + (right - wrong) * score["exact_accuracy"]
    figures = {
        "accuracy, %": 100 * score["accuracy"],
        "opened": score["opened"],
        "steps": score["steps"],
        "return": terminal - dqn.reward_step_penalty * (score["steps"] - 1) - score["setting"] * score["spent"],
    }
    return score["setting"], figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/quickstart.yaml")
    parser.add_argument("--runs", type=Path, default=Path("runs/price_conditioning"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0, 10.0, 100.0])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()

    def settings(seed: int) -> list[str]:
        return [f"training.seed={seed}", *(text.replace("{seed}", str(seed)) for text in arguments.overrides)]

    dqn = load_config(arguments.config, settings(arguments.seeds[0])).config.dqn
    per_child = dqn.expansion_cost_per_child

    def job(task: tuple[int, float | None]) -> None:
        seed, factor = task
        if factor is None:
            return train(arguments.config, arguments.runs / f"seed{seed}-every", settings(seed))
        price = [f"dqn.expansion_cost_per_child={per_child * factor}", "dqn.price_spread=1.0"]
        return train(arguments.config, arguments.runs / f"seed{seed}-{factor:g}", settings(seed) + price)

    jobs = [(seed, factor) for seed in arguments.seeds for factor in (None, *arguments.factors)]
    at_once(job, jobs, arguments.jobs)

    record: dict[str, Any] = {"config": arguments.config.name, "seeds": arguments.seeds, "prices": {}}
    for factor in arguments.factors:
        pairs = []
        for seed in arguments.seeds:
            level, single = judge(arguments.runs / f"seed{seed}-{factor:g}", dqn)
            _, every = judge(arguments.runs / f"seed{seed}-every", dqn, level)
            pairs.append((every, single))
        record["prices"][f"{factor:g}"] = {
            "level": level,
            "conditioned": {name: interval([every[name] for every, _ in pairs]) for name in FIGURES},
            "single": {name: interval([single[name] for _, single in pairs]) for name in FIGURES},
            "difference": {name: interval([every[name] - single[name] for every, single in pairs]) for name in FIGURES},
        }
    publish(record, arguments.out)


if __name__ == "__main__":
    main()
