"""The accuracy/cost table of a model: every policy on the same samples, with intervals and costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from trm_core.config.schema import Config
from trm_core.data.batch import WHOLE, CapsuleBatch, Part
from trm_core.data.dataset import Dataset, batches_of, label_batches
from trm_core.data.fields import IGNORE_LABEL
from trm_core.data.sound import require_checksums, require_finite
from trm_core.distributed.collectives import on_every_rank, rank, world_size
from trm_core.errors import UsageError
from trm_core.evaluation.answer_shares import AnswerShares, answer_shares
from trm_core.evaluation.flops import flops_counted
from trm_core.evaluation.intervals import accuracy_interval
from trm_core.evaluation.policies import PLAIN, LearnedPolicy, Policy, RandomPolicy, ThresholdPolicy
from trm_core.evaluation.rollout import Outcome, Thinking, of_all_ranks, rollout
from trm_core.model.capsule_state import CapsuleState
from trm_core.model.rows import take_rows
from trm_core.model.trm import TinyRecursiveModel

POLICIES = ("learned", "threshold", "random", *PLAIN)
EVAL_BATCH = 512  # rows at once, unless they are large
_NUMBERS = 2**23  # in the states, or in any other tensor of a batch; activations take some ten times as much
CURVE_THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
# Shares of the price range that the policy was trained on, from its low to its high end.
CURVE_PLACES = (0.0, 0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)


@dataclass(frozen=True)
class Score:
    """One line of the table. Costs are means per sample."""

    policy: str
    setting: float | None  # price level (learned, random) or confidence (threshold)
    accuracy: float
    low: float  # 95 % interval of the accuracy
    high: float
    exact_accuracy: float
    loss: float
    opened: float
    spent: float
    steps: float
    cycles: float  # high-level cycles over all steps
    flops: float
    rows: int
    exact_low: float  # 95 % interval of the exact accuracy
    exact_high: float
    exact_by_step: list[float]  # exact accuracy after each step; rows that have halted count as they were at the end
    answers: AnswerShares


@dataclass(frozen=True)
class EvaluationData:
    """What to evaluate on."""

    file: Dataset
    split: str
    limit: int | None = None
    at_once: int | None = None  # rows of a batch; None: EVAL_BATCH

    @property
    def batch(self) -> int:
        return self.at_once or EVAL_BATCH

    def batches(self, part: Part = WHOLE) -> Iterator[CapsuleBatch]:
        """Batches of the split, or of `limit` rows spread over it: neighbours may be copies of one puzzle."""
        return batches_of(self.file, self.split, self.batch, self.limit, part)

    def numbers(self, part: Part) -> list[range]:
        """The row numbers of each of these batches, counted from the first row that is evaluated."""
        rows = min(self.file.rows[self.split], self.limit or self.file.rows[self.split])
        return [range(first, min(first + self.batch, rows)) for first in part.starts(rows, self.batch)]

    def labels(self) -> Iterator[torch.Tensor]:
        """The labels of the same batches."""
        return label_batches(self.file, self.split, self.batch, self.limit)

    def labelled(self) -> bool:
        """Whether there is a label to compare an answer with."""
        return any(bool((labels != IGNORE_LABEL).any()) for labels in self.labels())


def rows_at_once(model: TinyRecursiveModel, trained: int) -> int:
    """How many rows to evaluate together, so that a batch of the longest puzzles still fits beside a model that has
    been trained with small ones. trained: rows whose gradient was computed at once. A GPU, which few rows leave idle,
    takes as many, since it has held what their gradient needs.
    """
    shape = model.data
    states = model.positions * model.first_z_H.shape[-1]
    children = shape.num_capsules * shape.num_children * shape.dim
    largest = max(states, children, shape.answers * shape.num_classes)
    fit = max(1, min(EVAL_BATCH, _NUMBERS // largest))
    return fit if model.first_z_H.device.type == "cpu" else max(fit, trained)


def trained_at_once(config: Config) -> int:
    """Rows whose gradient each process computes at once, if as many train as now evaluate."""
    return config.training.global_batch_size // (world_size() * config.training.accumulation_steps)


def pick_split(file: Dataset, asked: str) -> tuple[str, str]:
    """The split to evaluate, and why. Raises UsageError if the file lacks the one asked for, DataError if its labels
    are not classes or its checksums do not belong to their children.
    """
    split, reason = _choose_split(file, asked)
    file.require_labels(split)
    require_checksums(file, split)
    return split, reason


def _choose_split(file: Dataset, asked: str) -> tuple[str, str]:
    if asked != "auto":
        if not file.rows.get(asked):
            there = ", ".join(name for name, rows in file.rows.items() if rows)
            raise UsageError(f"{file.path} has no split '{asked}'", hint=f"it has: {there}")
        return asked, "by the config"
    for name, reason in (
        ("validation", "the file has one"),
        ("test", "the file has no validation split"),
        ("train", "the file has no other split: this is not a held-out score"),
    ):
        if file.rows.get(name):
            return name, reason
    raise UsageError(f"{file.path} has no rows")


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one row: of one high-level cycle, and of the rest of a reasoning step."""

    cycle: float
    rest: float

    def of(self, steps: float, cycles: float) -> float:
        return self.rest * steps + self.cycle * cycles


def count_flops(model: TinyRecursiveModel, prices: torch.Tensor) -> Flops:
    """The operations of the model, counted on one row of zeros."""
    capsules = CapsuleState.blank(model.data, 1, prices)
    one = torch.ones(1, dtype=torch.int64, device=prices.device)
    z_H, z_L = model.first_latents(1)
    was_training = model.training
    model.eval()  # looking at the cost must not count as a read of the memory bank
    with torch.no_grad(), flops_counted() as counter:
        output = model(z_H, z_L, capsules, one, one.float(), model.first_q_memory(1))
    step = counter.total
    with torch.no_grad(), flops_counted() as counter:
        z_H, _ = model.recursion.cycle(z_H, z_L, output.x, model.attention_bias(capsules))
        model.refine(z_H, None)
    cycle = counter.total
    model.train(was_training)
    return Flops(cycle, step - cycle * float(output.cycles[0]))


def chance(data: EvaluationData, num_classes: int) -> dict[str, float]:
    """Accuracy of always giving the most frequent label of the split, and of uniform guessing."""
    counts = torch.zeros(num_classes, dtype=torch.int64)
    for labels in data.labels():
        counts += torch.bincount(labels[labels != IGNORE_LABEL], minlength=num_classes)
    seen = int((counts > 0).sum())
    return {"majority": float(counts.max() / counts.sum().clamp(min=1)), "uniform": 1.0 / max(seen, 1)}


class Evaluator:
    """Runs policies over one split, and keeps the outcomes for paired comparisons.

    Several processes run each policy together: each takes some of the batches, and all have all outcomes at the end.
    """

    def __init__(
        self,
        model: TinyRecursiveModel,
        config: Config,
        data: EvaluationData,
        on_rows: Callable[[int], None] = lambda rows: None,
        thinking: Thinking | None = None,
    ) -> None:
        self.model, self.config, self.on_rows = model, config, on_rows
        self.data = replace(data, at_once=data.at_once or rows_at_once(model, trained_at_once(config)))
        self.thinking = thinking or Thinking()
        self.outcomes: dict[str, Outcome] = {}  # the latest of each policy
        device = next(model.parameters()).device
        self.prices = torch.as_tensor(data.file.prices, dtype=torch.float32, device=device)
        self.flops = count_flops(model, self.prices)

    def run(self, policy: Policy) -> Outcome:
        found = self.outcomes[policy.name] = of_all_ranks(*on_every_rank(lambda: self.run_part(policy)))
        return found

    def run_part(self, policy: Policy) -> tuple[torch.Tensor, Outcome]:
        """The outcome of this process's batches, with the numbers [n] of their rows. Raises DataError where it is not
        finite because rows are not.
        """
        part = Part(rank(), world_size())
        numbers = self.data.numbers(part)
        idle = not numbers  # more processes than batches: this one repeats the first, for the outcome's shape
        if idle:
            part = Part(0, world_size())
            numbers = self.data.numbers(part)
        outcomes = []
        for rows, batch in zip(numbers, self.data.batches(part), strict=True):
            outcome = rollout(
                self.model, self.config, [batch], policy, self.prices, self.on_rows, self.thinking, first=rows.start
            )
            if not outcome.finite():
                require_finite(self.data.file, self.data.split, batch)
            outcomes.append(outcome)
        mine = torch.tensor([number for rows in numbers for number in rows])
        found = Outcome.join(outcomes)
        return (mine[:0], take_rows(found, slice(0, 0))) if idle else (mine, found)

    def score(self, policy: Policy, setting: float | None, outcome: Outcome) -> Score:
        rows = outcome.labelled
        if not bool(rows.any()):
            raise UsageError(f"{self.data.file.path}: no row of '{self.data.split}' has a label to compare with")
        accuracy = outcome.accuracy[rows]
        low, high = accuracy_interval(accuracy)

        def mean(values: torch.Tensor) -> float:
            return float(values[rows].double().mean())

        steps, cycles = mean(outcome.steps), mean(outcome.cycles)
        exact_low, exact_high = accuracy_interval(outcome.exact[rows])
        return Score(
            policy.name, setting, mean(outcome.accuracy), low, high, mean(outcome.exact), mean(outcome.loss),
            mean(outcome.opened), mean(outcome.spent), steps, cycles, self.flops.of(steps, cycles), int(rows.sum()),
            exact_low, exact_high,
            # With restarts the best is known only at the end: its earlier answers are not those of any procedure.
            outcome.exact_at[rows].double().mean(0).tolist() if self.thinking.restarts == 1 else [],
            answer_shares(outcome.prediction.cpu(), self.data.labels(), self.model.data.num_classes),
        )  # fmt: skip

    def table(
        self, names: Sequence[str], prices: Sequence[float] | None = None, confidence: float = 0.95
    ) -> list[Score]:
        """Scores of the named policies; `learned` and `random` once per price level."""
        return [score for score, _ in self.scored(names, prices, confidence)]

    def scored(
        self, names: Sequence[str], prices: Sequence[float] | None = None, confidence: float = 0.95
    ) -> Iterator[tuple[Score, Outcome]]:
        """The lines of that table one by one, each with the outcome of its rows."""
        levels = list(prices) if prices else [self.model.price_level]
        learned: dict[float, Outcome] = {}

        def run_learned(level: float) -> Outcome:
            if level not in learned:
                learned[level] = self.run(LearnedPolicy(level))
            return learned[level]

        for name in names:
            if name == "learned":
                for level in levels:
                    outcome = run_learned(level)
                    yield self.score(LearnedPolicy(level), level, outcome), outcome
            elif name == "random":
                for level in levels:
                    source = run_learned(level)
                    yield self._run_and_score(RandomPolicy(source.actions, source.counts, level), level)
            elif name == "threshold":
                yield self._run_and_score(ThresholdPolicy(confidence, self.model.price_level), confidence)
            else:
                yield self._run_and_score(PLAIN[name](self.model.price_level), None)

    def _run_and_score(self, policy: Policy, setting: float | None) -> tuple[Score, Outcome]:
        outcome = self.run(policy)
        return self.score(policy, setting, outcome), outcome

    def threshold_curve(self, thresholds: Sequence[float] = CURVE_THRESHOLDS) -> list[Score]:
        """The threshold policy at several confidences."""
        curve = []
        for confidence in thresholds:
            curve.append(self._run_and_score(ThresholdPolicy(confidence, self.model.price_level), confidence)[0])
        return curve

    def learned_curve(self, prices: Sequence[float] | None = None) -> list[Score]:
        """The learned policy at several price levels."""
        return self.table(["learned"], prices or self.trained_prices())

    def trained_prices(self) -> list[float]:
        """Price levels that span the trained range, evenly spaced in their logarithm."""
        spread = self.config.dqn.price_spread
        return [self.model.price_level * spread ** (2 * place - 1) for place in CURVE_PLACES]


def default_policies(config: Config) -> list[str]:
    """The policies that a finished run is compared with."""
    if not config.arch.enable_capsule_expansion:
        return (["learned", "threshold"] if config.dqn.enabled else []) + ["act", "never"]
    return ["learned", "threshold", "never", "all", "random"]


def require_policies(names: Sequence[str], config: Config) -> None:
    """Raise UsageError for a policy that is unknown or that this model cannot follow."""
    for name in names:
        if name not in POLICIES:
            raise UsageError(f"unknown policy '{name}'", hint=f"choose from {', '.join(POLICIES)}")
        if name in ("learned", "random") and not config.dqn.enabled:
            raise UsageError(f"policy '{name}' needs a run with dqn.enabled", hint="use act, threshold, never or all")


def as_records(scores: Sequence[Score]) -> list[dict[str, Any]]:
    return [asdict(score) for score in scores]
