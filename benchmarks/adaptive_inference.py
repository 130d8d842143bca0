"""How much time halting and adaptive H-cycles save at inference, on the same opened capsules.

    python -m benchmarks.adaptive_inference RUN... --out benchmarks/results/adaptive_inference.json

RUNs are of capsules or of puzzles. First the learned policy decides which capsules each test sample opens (for puzzles:
none). Then two ways of reasoning get exactly these, open from the start:

    all       every sample runs T steps with all cycles. T: the smallest number of steps whose accuracy is within 0.1
              points of the best of 1..max_steps, on the test samples or on the tuning samples, whichever needs fewer
    adaptive  a sample halts once its halt logit is high enough and, with `arch.enable_adaptive_hcycles`, leaves the H
              loop above its threshold; the batch shrinks

A puzzle is right when all of its cells are.
Wall-clock time on one thread, alternating, for all samples and for the easier and the harder half (by confidence after
the first step, with the same capsules open). The halt logit to halt at is the smallest of several candidates within 0.3
points of `all` on the validation samples; without these (training puzzles are memorised), the run's
`arch.halt_threshold`. For several runs: the median ratio with the outer ends of all intervals, and the mean accuracy.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.record import describe_machine, publish
from benchmarks.timing import alternate, ratio
from trm_core.config.schema import Config
from trm_core.data.batch import CapsuleBatch
from trm_core.data.dataset import Dataset, batches_of, open_dataset
from trm_core.dqn.actions import Action
from trm_core.evaluation.load import load_run
from trm_core.evaluation.policies import LearnedPolicy, Situation, nothing
from trm_core.evaluation.rollout import Outcome, rollout
from trm_core.model.capsule_state import CapsuleState
from trm_core.model.trm import TinyRecursiveModel

PARTS = ("all samples", "easy half", "hard half")
HALTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass
class Given:
    """Opens the given capsules before step 1, and halts above a halt logit or after `steps` steps."""

    selects: ClassVar[bool] = False
    opened: Tensor  # [N, k]
    halt: float
    steps: int
    price: float
    name: str = "given"
    first: int = 0

    def open_first(self, capsules: CapsuleState) -> Tensor:
        rows = len(capsules.expanded)
        here = self.opened[self.first : self.first + rows]
        self.first = (self.first + rows) % len(self.opened)
        return here

    def decide(self, now: Situation) -> tuple[Tensor, Tensor]:
        stop = (now.output.halt_logit > self.halt) | (now.steps >= self.steps) | ~now.valid[:, Action.CONTINUE]
        return torch.where(stop, Action.HALT, Action.CONTINUE), nothing(now.capsules)


class Opened(LearnedPolicy):
    """The learned policy, recording what it opened."""

    def __init__(self, price: float, opened: Tensor) -> None:
        super().__init__(price)
        self.opened = opened

    def decide(self, now: Situation) -> tuple[Tensor, Tensor]:
        action, opened = super().decide(now)
        self.opened[now.rows] |= opened
        return action, opened


class Bench:
    """One model on one split."""

    def __init__(self, model: TinyRecursiveModel, config: Config, batch: CapsuleBatch, prices: Tensor) -> None:
        self.model, self.config, self.batch, self.prices = model, config, batch, prices
        self.opened = torch.zeros(len(batch), model.data.num_capsules, dtype=torch.bool)
        if not model.data.tokens:
            policy = Opened(model.price_level, self.opened)
            rollout(model, config, [batch], policy, prices)

    def run(self, halt: float, steps: int, leave: float | None, rows: Tensor | None = None) -> Outcome:
        batch = self.batch if rows is None else self.batch.select(rows)
        opened = self.opened if rows is None else self.opened[rows]
        self.model.leave_above = leave
        return rollout(
            self.model, self.config, [batch], Given(opened, halt, steps, self.model.price_level), self.prices
        )

    def right(self, outcome: Outcome) -> float:
        return float((outcome.exact.float() if self.model.data.tokens else outcome.accuracy).mean())

    def needed_steps(self) -> tuple[int, list[float]]:
        """The smallest T within 0.1 points of the best accuracy, and the accuracy of every T."""
        never = float("inf")
        curve = [self.right(self.run(never, steps, None)) for steps in range(1, self.config.arch.max_steps + 1)]
        return next(t for t, a in enumerate(curve, start=1) if a >= max(curve) - 0.001), curve


def whole_split(file: Dataset, split: str, limit: int = 4000) -> CapsuleBatch:
    rows = min(file.rows[split], limit)
    return next(batches_of(file, split, rows, rows))


def measured(run: Path, repetitions: int) -> dict[str, Any]:
    """The record of one run."""
    loaded = load_run(run, torch.device("cpu"))
    config, model = loaded.config, loaded.model
    threshold = model.leave_above
    file = open_dataset(loaded.data["eval"]["path"])
    prices = torch.as_tensor(file.prices)
    tuning = "validation" if file.rows.get("validation") else "train"
    tune = Bench(model, config, whole_split(file, tuning, 1000), prices)
    bench = Bench(model, config, whole_split(file, "test"), prices)
    test_steps, curve = bench.needed_steps()
    steps = min(test_steps, tune.needed_steps()[0])
    halt = config.arch.halt_threshold
    if tuning == "validation":
        full = tune.right(tune.run(float("inf"), steps, None))
        halt = next((h for h in HALTS if tune.right(tune.run(h, steps, threshold)) >= full - 0.003), float("inf"))

    confidence = bench.run(float("inf"), 1, None).confidence
    order = confidence.argsort(descending=True)
    half = len(order) // 2
    parts = dict(zip(PARTS, (torch.arange(len(order)), order[:half], order[half:]), strict=True))
    record: dict[str, Any] = {
        "run": run.name,
        "T": steps,
        "accuracy by T on the test split": curve,
        "halt logit": halt,
        "leaves the H loop above": threshold,
        "tuned on": tuning if tuning == "validation" else None,
        "opened": float(bench.opened.sum(1).float().mean()),
    }
    for name, rows in parts.items():

        def adaptive(rows: Tensor = rows) -> Outcome:
            return bench.run(halt, steps, threshold, rows)

        def everything(rows: Tensor = rows) -> Outcome:
            return bench.run(float("inf"), steps, None, rows)

        works: dict[str, Callable[[], object]] = {"all": everything, "adaptive": adaptive}
        seconds = alternate(works, repetitions)
        fast, slow = adaptive(), everything()
        record[name] = {
            "times faster": ratio(seconds["all"], seconds["adaptive"]),
            "accuracy": {"all": bench.right(slow), "adaptive": bench.right(fast)},
            "steps": {"all": float(slow.steps.float().mean()), "adaptive": float(fast.steps.float().mean())},
            "cycles": {"all": float(slow.cycles.float().mean()), "adaptive": float(fast.cycles.float().mean())},
        }
    return record


def together(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Combine the runs for each part of the samples; then the runs themselves."""
    parts: dict[str, Any] = {}
    for part in PARTS:
        faster = [record[part]["times faster"] for record in records]
        parts[part] = {
            "times faster": {
                "ratio": statistics.median(one["ratio"] for one in faster),
                "low": min(one["low"] for one in faster),
                "high": max(one["high"] for one in faster),
            },
            "accuracy": {
                way: statistics.mean(record[part]["accuracy"][way] for record in records) for way in ("all", "adaptive")
            },
        }
    return {**parts, "runs": list(records)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repetitions", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine(threads=1)
    records = [measured(run, arguments.repetitions) for run in arguments.runs]
    publish({"machine": machine, **together(records)}, arguments.out)


if __name__ == "__main__":
    main()
