"""How often each class is the answer, beside how often it is the label: what shows that answers collapse onto some, and
which class is taken for which.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trm_core.data.fields import IGNORE_LABEL

SELDOM = 0.25  # of its labels: a class that is answered less often than this is left out
OFTEN = 2.0  # times its labels: a class that is answered more often than this is answered too often
COMMON = 0.5  # of the most frequent label: in doubt a good model answers a more frequent class, so rarer ones may miss
CHANCE = 0.001  # that a model which answers every class just at these bounds has one class that seems to be beyond


@dataclass(frozen=True)
class AnswerShares:
    """Shares of all labels that are compared, 0 to 1."""

    top_answer: float  # answers that are the most frequent answer
    top_label: float  # labels that are the most frequent label
    left_out: float  # labels whose class is common, and answered so seldom that it is no chance
    in_excess: float  # answers beyond the labels, of classes answered so often that it is no chance


def answer_shares(answers: Tensor, labels: Iterable[Tensor], classes: int) -> AnswerShares:
    """answers [N, P], and batches of labels [b] or [b, P] in the same order; where there is no label, no answer counts.
    Needs one label.
    """
    answered, labelled = torch.zeros(classes, dtype=torch.int64), torch.zeros(classes, dtype=torch.int64)
    rows = 0
    for given, known, valid in _pairs(answers, labels):
        answered += torch.bincount(given[valid], minlength=classes)
        labelled += torch.bincount(known[valid], minlength=classes)
        rows += int(valid.any(1).sum())
    total, most = int(labelled.sum()), int(labelled.max())
    # Answers of one row depend on each other: chance is reckoned as if a row had one.
    per_row = total / rows
    counts = [(a, b) for a, b in zip(answered.tolist(), labelled.tolist(), strict=True) if a or b]
    seldom = [(b, _surprise(a, SELDOM * b, per_row)) for a, b in counts if COMMON * most <= b > a / SELDOM]
    # One row more: a rare label may be missing.
    bounds = [(a, b, OFTEN * (b + per_row)) for a, b in counts]
    often = [(a - b, _surprise(a, bound, per_row)) for a, b, bound in bounds if a > bound]
    return AnswerShares(
        top_answer=int(answered.max()) / total,
        top_label=most / total,
        left_out=_no_chance(seldom, len(counts)) / total,
        in_excess=_no_chance(often, len(counts)) / total,
    )


@dataclass(frozen=True)
class Confusion:
    """Which class is taken for which, of V classes."""

    matrix: Tensor  # [V, V] int64: labels [label, answer]
    rows: Tensor  # [V] int64: rows that have such a label


def confusion(answers: Tensor, labels: Iterable[Tensor], classes: int) -> Confusion:
    """Of the same answers and labels."""
    counts, rows = torch.zeros(classes * classes, dtype=torch.int64), torch.zeros(classes, dtype=torch.int64)
    for given, known, valid in _pairs(answers, labels):
        counts += torch.bincount(known[valid] * classes + given[valid], minlength=classes * classes)
        # A row counts once for each of its classes.
        one = torch.arange(len(known))[:, None].expand_as(known)[valid] * classes + known[valid]
        rows += torch.bincount(one.unique() % classes, minlength=classes)
    return Confusion(counts.view(classes, classes), rows)


def _pairs(answers: Tensor, labels: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Answers, labels, and where they are compared, [b, P] each, batch by batch."""
    first = 0
    for batch in labels:
        known = batch if batch.dim() > 1 else batch[:, None]
        yield answers[first : first + len(known)], known, known != IGNORE_LABEL
        first += len(known)


def _surprise(count: float, mean: float, unit: float) -> float:
    """Minus the logarithm of Chernoff's bound of the chance of a Poisson variable to be as far from its mean as `count`
    is; both are counted in units.
    """
    return (mean - count + (count * math.log(count / mean) if count else 0.0)) / unit


def _no_chance(beyond: list[tuple[int, float]], classes: int) -> int:
    """Sum of the amounts of the largest set of classes that together are no chance, of (amount, surprise) each. Any set
    could have been the one, so their number counts against it.
    """
    found = amount = 0
    surprise = 0.0
    for size, (more, surprising) in enumerate(sorted(beyond, key=lambda one: -one[1]), start=1):
        amount, surprise = amount + more, surprise + surprising
        sets = math.lgamma(classes + 1) - math.lgamma(size + 1) - math.lgamma(classes - size + 1)
        if surprise > sets + math.log(classes / CHANCE):
            found = amount
    return found
