"""How often each class is the answer compared with how often it is the label, which shows whether answers collapse onto
a few classes; and which class is mistaken for which.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trm_core.data.fields import IGNORE_LABEL

SELDOM = 0.25  # a class that is answered less often than this share of its labels is left out
OFTEN = 2.0  # a class that is answered more often than this multiple of its labels is answered too often
COMMON = 0.5  # of the top label's count: when in doubt a good model answers a frequent class, so rarer ones may miss
CHANCE = 0.001  # chance that a model exactly at these bounds has any class that seems to exceed them


@dataclass(frozen=True)
class AnswerShares:
    """Shares of all labels that are compared, from 0 to 1."""

    top_answer: float  # of the most frequent answer among the answers
    top_label: float  # of the most frequent label among the labels
    left_out: float  # labels whose class is common yet answered so seldom that it cannot be chance
    in_excess: float  # answers in excess of the labels, of classes answered so often that it cannot be chance


def answer_shares(answers: Tensor, labels: Iterable[Tensor], classes: int) -> AnswerShares:
    """answers [N, P], and batches of labels [b] or [b, P] in the same order; answers without a label do not count.
    Needs at least one label.
    """
    answered, labelled = torch.zeros(classes, dtype=torch.int64), torch.zeros(classes, dtype=torch.int64)
    rows = 0
    for given, known, valid in _pairs(answers, labels):
        answered += torch.bincount(given[valid], minlength=classes)
        labelled += torch.bincount(known[valid], minlength=classes)
        rows += int(valid.any(1).sum())
    total, most = int(labelled.sum()), int(labelled.max())
    # Answers of one row depend on each other: chance is computed as if each row had a single one.
    per_row = total / rows
    counts = [(a, b) for a, b in zip(answered.tolist(), labelled.tolist(), strict=True) if a or b]
    seldom = [(b, _surprise(a, SELDOM * b, per_row)) for a, b in counts if COMMON * most <= b > a / SELDOM]
    # One row more is allowed: a rare label may be missing from the split.
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
    """Which class is mistaken for which, among V classes."""

    matrix: Tensor  # [V, V] int64: labels [label, answer]
    rows: Tensor  # [V] int64: rows that have such a label


def confusion(answers: Tensor, labels: Iterable[Tensor], classes: int) -> Confusion:
    """The confusion of the same answers and labels."""
    counts, rows = torch.zeros(classes * classes, dtype=torch.int64), torch.zeros(classes, dtype=torch.int64)
    for given, known, valid in _pairs(answers, labels):
        counts += torch.bincount(known[valid] * classes + given[valid], minlength=classes * classes)
        # A row counts once for each class among its labels.
        one = torch.arange(len(known))[:, None].expand_as(known)[valid] * classes + known[valid]
        rows += torch.bincount(one.unique() % classes, minlength=classes)
    return Confusion(counts.view(classes, classes), rows)


def _pairs(answers: Tensor, labels: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Answers, labels, and the mask of those that are compared, [b, P] each, batch by batch."""
    first = 0
    for batch in labels:
        known = batch if batch.dim() > 1 else batch[:, None]
        yield answers[first : first + len(known)], known, known != IGNORE_LABEL
        first += len(known)


def _surprise(count: float, mean: float, unit: float) -> float:
    """Minus the logarithm of Chernoff's bound on the probability that a Poisson variable is as far from its mean as
    `count`; both are counted in units of `unit`.
    """
    return (mean - count + (count * math.log(count / mean) if count else 0.0)) / unit


def _no_chance(beyond: list[tuple[int, float]], classes: int) -> int:
    """Sum of the amounts of the largest set of classes that together cannot be chance, given (amount, surprise) for
    each class. Any set could have been the one, so the number of sets counts against it.
    """
    found = amount = 0
    surprise = 0.0
    for size, (more, surprising) in enumerate(sorted(beyond, key=lambda one: -one[1]), start=1):
        amount, surprise = amount + more, surprise + surprising
        sets = math.lgamma(classes + 1) - math.lgamma(size + 1) - math.lgamma(classes - size + 1)
        if surprise > sets + math.log(classes / CHANCE):
            found = amount
    return found
