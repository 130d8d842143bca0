"""The curves of one trained run: its learned policy, thresholds with every selector, and orders fixed in advance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, get_args

import torch
from torch import Tensor

from benchmarks.acquisition.curves import Curve, Group, Point
from benchmarks.acquisition.summary import OWN
from trm_core.config.schema import Config, Selector
from trm_core.data.batch import WHOLE, CapsuleBatch, Part
from trm_core.dqn.actions import Action
from trm_core.dqn.selectors import PEEKING
from trm_core.errors import TrmError
from trm_core.evaluation.load import TrainedRun
from trm_core.evaluation.policies import FixedPolicy, LearnedPolicy, RandomPolicy, Situation, ThresholdPolicy, nothing
from trm_core.evaluation.report import EvaluationData, Evaluator
from trm_core.evaluation.rollout import Outcome
from trm_core.model.capsule_state import CapsuleState

SELECTORS = ("cmi", "static", "entropy", "attention", "random", *PEEKING)
PRICE_FACTORS = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
CONFIDENCES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.9999)
ORDER_ROWS = 512
Log = Callable[[str], None]


@dataclass(frozen=True)
class OursOptions:
    """Which of our policies to run."""

    selectors: Sequence[str] = SELECTORS
    factors: Sequence[float] = PRICE_FACTORS  # times the run's own price level
    confidences: Sequence[float] = CONFIDENCES
    order_rows: int = ORDER_ROWS  # training rows on which the fixed order is chosen


@dataclass
class OrderPolicy:
    """Opens the first `number` openable capsules of an order before the first step, then thinks for all T steps.

    worth: [k] gives one order for all rows, higher first; None: a random order per row, the same for every `number`.
    """

    selects: ClassVar[bool] = False
    worth: Tensor | None
    number: int
    price: float
    seed: int = 0
    name: str = "order"
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def open_first(self, capsules: CapsuleState) -> Tensor:
        shape = capsules.expanded.shape
        worth = torch.rand(shape, generator=self.generator) if self.worth is None else self.worth.expand(shape)
        rank = (
            worth.masked_fill(~capsules.can_open(), -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(1)
        )
        return (rank < self.number) & capsules.can_open()

    def decide(self, now: Situation) -> tuple[Tensor, Tensor]:
        return think_on(now)


@dataclass
class SetPolicy:
    """Opens one set of capsules [k] bool, the same in every row, before the first step, then thinks for all T steps."""

    selects: ClassVar[bool] = False
    chosen: Tensor
    price: float
    name: str = "set"

    def open_first(self, capsules: CapsuleState) -> Tensor:
        return capsules.can_open() & self.chosen

    def decide(self, now: Situation) -> tuple[Tensor, Tensor]:
        return think_on(now)


def think_on(now: Situation) -> tuple[Tensor, Tensor]:
    """Continue until the last step without opening anything."""
    action = torch.where(now.valid[:, Action.CONTINUE], Action.CONTINUE, Action.HALT)
    return action, nothing(now.capsules)


@dataclass(frozen=True)
class KeptRows(EvaluationData):
    """`limit` rows of the split, read once, because the greedy search passes over them k (k + 1) / 2 times."""

    kept: list[CapsuleBatch] = field(default_factory=list)

    def batches(self, part: Part = WHOLE) -> Iterator[CapsuleBatch]:
        if not self.kept:
            self.kept.extend(super().batches())
        yield from self.kept[part.number :: part.of]


def with_selector(config: Config, selector: str) -> Config:
    """The run's config with another selector."""
    return config.model_copy(update={"dqn": config.dqn.model_copy(update={"expansion_selector": selector})})


def point(evaluator: Evaluator, policy: object, setting: float | None, outcome: Outcome | None = None) -> Point:
    """A policy's means over the labelled rows. Raises UsageError if no row has a label."""
    score = evaluator.score(policy, setting, outcome or evaluator.run(policy))  # type: ignore[arg-type]
    return Point(setting, score.opened, score.spent, score.accuracy, score.steps)


def curves(run: TrainedRun, data: EvaluationData, options: OursOptions, log: Log) -> tuple[list[Curve], float]:
    """All curves of one run, and its accuracy with everything open. What cannot be run is logged and left out."""
    evaluator = Evaluator(run.model, run.config, data)
    level = run.model.price_level
    never = point(evaluator, FixedPolicy(False, level, "never"), None)
    everything = point(evaluator, FixedPolicy(True, level, "all"), None)
    found = learned(run, evaluator, never, options, log)
    found += thresholds(run, data, never, options, log)
    found += orders(run, evaluator, options)
    return found, everything.accuracy


def learned(run: TrainedRun, evaluator: Evaluator, never: Point, options: OursOptions, log: Log) -> list[Curve]:
    """The learned policy over price levels, and the same actions with capsules opened at random."""
    if not run.config.dqn.enabled:
        log(f"{run.path}: trained without a policy (dqn.enabled: false); no learned curve")
        return []
    chosen, at_random = [never], [never]
    for factor in options.factors:
        price = run.model.price_level * factor
        outcome = evaluator.run(LearnedPolicy(price))
        chosen.append(point(evaluator, LearnedPolicy(price), factor, outcome))
        at_random.append(point(evaluator, RandomPolicy(outcome.actions, outcome.counts, price), factor))
    selector = run.config.dqn.expansion_selector
    group: Group = "peeks" if selector in PEEKING else "ours"
    return [
        Curve("learned", group, OWN, chosen),
        Curve("learned, capsules at random", "reference", OWN, at_random),
    ]


def thresholds(run: TrainedRun, data: EvaluationData, never: Point, options: OursOptions, log: Log) -> list[Curve]:
    """The confidence threshold with every selector that this model has."""
    found = []
    probe = threshold_losses(run, data, "random", options)
    for selector in options.selectors:
        reason = missing(run, selector)
        if reason is None:
            try:
                if selector != "random" and torch.equal(threshold_losses(run, data, selector, options), probe):
                    reason = "it opens what `random` opens in every row: not implemented in this version"
            except TrmError as error:
                reason = error.message
        if reason is not None:
            log(f"selector {selector}: left out, {reason}")
            continue
        evaluator = Evaluator(run.model, with_selector(run.config, selector), data)
        points = [
            point(evaluator, ThresholdPolicy(confidence, run.model.price_level), confidence)
            for confidence in options.confidences
        ]
        group: Group = "peeks" if selector in PEEKING else "reference" if selector == "random" else "ours"
        found.append(Curve(f"threshold, {selector}", group, OWN, [never, *points]))
    return found


def threshold_losses(run: TrainedRun, data: EvaluationData, selector: str, options: OursOptions) -> Tensor:
    """[N] losses at the highest confidence, as a fingerprint of which capsules were opened."""
    evaluator = Evaluator(run.model, with_selector(run.config, selector), data)
    return evaluator.run(ThresholdPolicy(max(options.confidences), run.model.price_level)).loss


def missing(run: TrainedRun, selector: str) -> str | None:
    """Why this model cannot use a selector, as far as its parts show; None if it can."""
    if selector not in get_args(Selector):
        return "unknown in this version"
    if selector == "cmi" and run.model.cmi_head is None:
        return f"the model has no cmi head (trained with {run.config.dqn.expansion_selector})"
    if selector == "checksum" and run.model.reconstruction.checksum is None:
        return "the model predicts no checksums"
    return None


def orders(run: TrainedRun, evaluator: Evaluator, options: OursOptions) -> list[Curve]:
    """Curves of opening the first n capsules of one fixed order (see `greedy_order`), and of random orders."""
    k, level = run.model.data.num_capsules, run.model.price_level
    order = greedy_order(run, evaluator, options.order_rows)
    worth = torch.empty(k)
    worth[torch.tensor(order)] = torch.arange(k, 0, -1, dtype=torch.float32)
    numbers = range(k + 1)
    fixed = [point(evaluator, OrderPolicy(worth, n, level), n) for n in numbers]
    random = [point(evaluator, OrderPolicy(None, n, level), n) for n in numbers]
    return [Curve("fixed order", "reference", OWN, fixed), Curve("random order", "reference", OWN, random)]


def greedy_order(run: TrainedRun, evaluator: Evaluator, rows: int) -> list[int]:
    """Capsules in greedy order: each is the one that lowers the mean loss most when opened in addition to those before.

    Chosen on the validation split unless that is the one evaluated, otherwise on training rows.
    """
    file = evaluator.data.file
    split = "validation" if file.rows.get("validation") and evaluator.data.split != "validation" else "train"
    sample = Evaluator(run.model, run.config, KeptRows(file, split, rows))
    k, level = run.model.data.num_capsules, run.model.price_level
    order: list[int] = []
    while len(order) < k:
        losses = {}
        for candidate in set(range(k)) - set(order):
            chosen = torch.zeros(k, dtype=torch.bool)
            chosen[[*order, candidate]] = True
            outcome = sample.run(SetPolicy(chosen, level))
            losses[candidate] = float(outcome.loss[outcome.labelled].mean())
        order.append(min(sorted(losses), key=lambda c: losses[c]))
    return order
