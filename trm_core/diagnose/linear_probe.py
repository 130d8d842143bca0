"""Linear probes of samples and labels: within a split, across splits, and in part of a split. Plain numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

_FEATURES = 300  # of a block; more are randomly projected down to this many
_FOLDS = 3
_BLOCKS = 20  # of neighbouring samples

Array = NDArray[np.float64]
Blocks = Sequence[Array]


@dataclass(frozen=True)
class Stretch:
    """Neighbouring samples on which a probe is right far less often than on the others. `begin`, `end`: where they lie,
    as fractions of the samples examined (after `in_file`, of the split); `inside`, `outside`: accuracies; `share`:
    their share of the samples examined.
    """

    begin: float
    end: float
    inside: float
    outside: float
    share: float

    def in_file(self, rows: NDArray[np.int64], total: int) -> Stretch:
        """The same, as fractions of a split of `total` rows, of which `rows` [n] were examined."""
        first, last = round(self.begin * len(rows)), round(self.end * len(rows)) - 1
        return replace(self, begin=float(rows[first] / total), end=float((rows[last] + 1) / total))


def broken_stretch(right: NDArray[np.bool_], labels: NDArray[np.int64], chance: float) -> Stretch | None:
    """The neighbouring samples whose labels seem to belong to other samples: a probe is near chance there and well
    above it elsewhere. right [n]: whether the probe is right, in the order of the file.

    A stretch whose class shares differ from the rest is ignored, unless it contains many of the classes: in a file
    sorted by class, or by something related to it, such a stretch is merely a hard part.
    """
    edges = np.linspace(0, len(right), _BLOCKS + 1).astype(int)
    hits = np.concatenate([[0], np.cumsum(right)])[edges]
    _, y = np.unique(labels, return_inverse=True)
    counts = np.concatenate([np.zeros((1, y.max() + 1)), np.cumsum(np.eye(y.max() + 1)[y], axis=0)])[edges]
    found, most = None, 6.0  # standard errors: high, because some two hundred stretches are tested
    for first, last in combinations(range(_BLOCKS + 1), 2):
        count = edges[last] - edges[first]
        rest = len(right) - count
        if last - first < _BLOCKS // 10 or last - first > _BLOCKS - _BLOCKS // 10:
            continue
        inside, outside = (hits[last] - hits[first]) / count, (hits[-1] - hits[last] + hits[first]) / rest
        near_chance = inside - chance < 0.3 * (outside - chance)
        error = math.sqrt(outside * (1 - outside) / rest + inside * (1 - inside) / count) + 1e-9
        if (outside - inside) / error <= most or outside < chance + 0.15 or not near_chance:
            continue
        within = counts[last] - counts[first]
        many = (within > 0.03 * count).sum() >= max(5, 0.6 * len(within))
        if not many and np.abs(within / count - (counts[-1] - within) / rest).sum() / 2 > 0.18:
            continue
        most = (outside - inside) / error
        begin, end = first / _BLOCKS, last / _BLOCKS
        found = Stretch(begin, end, float(inside), float(outside), end - begin)
    return found


def told_apart_within(stretch: Stretch, blocks: Blocks, labels: NDArray[np.int64]) -> float:
    """`told_apart` within a stretch, by a probe learned there. If it is well above 0.5, nothing is broken: there too
    the inputs predict the labels, but in another way, as in a file ordered by place or time.
    """
    rows = slice(round(stretch.begin * len(labels)), round(stretch.end * len(labels)))
    return told_apart([block[rows] for block in blocks], labels[rows])


def right_in_folds(blocks: Blocks, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[n]: whether ridge regression onto the classes, learned from the other two thirds of the samples, is right.
    Features come in blocks [n, F_i], which are standardised, and randomly projected where F_i exceeds 300.
    """
    classes, y = np.unique(labels, return_inverse=True)
    return np.asarray(_scores_in_folds(blocks, y, len(classes)).argmax(1) == y)


def told_apart(blocks: Blocks, labels: NDArray[np.int64]) -> float:
    """Area under the ROC curve (0.5 by chance) of the ridge regression of `right_in_folds`: how often a member of a
    class scores higher for it than a non-member, averaged over classes with at least ten members. Unlike accuracy, it
    does not suffer when one class is far more frequent than the others.
    """
    classes, y = np.unique(labels, return_inverse=True)
    scores, folds = _scores_in_folds(blocks, y, len(classes)), _folds(len(y))
    areas = []
    for number, count in enumerate(np.bincount(y)):
        if 10 <= count < len(y):
            # Within each fold, because the scores of two regressions are not comparable.
            won, pairs = np.sum(
                [_pairs_won(scores[folds == f, number], y[folds == f] == number) for f in range(_FOLDS)], axis=0
            )
            areas.append(won / max(pairs, 1.0))
    return float(np.mean(areas)) if areas else 0.5


def _pairs_won(scores: Array, member: NDArray[np.bool_]) -> tuple[float, float]:
    """How many pairs of a member and a non-member the member wins (a draw is half a win), and how many pairs exist."""
    others = np.sort(scores[~member])
    below, not_above = (np.searchsorted(others, scores[member], side) for side in ("left", "right"))
    return float((below + not_above).sum() / 2), float(member.sum() * len(others))


def right_elsewhere(blocks: Blocks, labels: NDArray[np.int64], others: Blocks, truth: NDArray[np.int64]) -> float:
    """Accuracy on `others` [m, F_i] of the ridge regression of `right_in_folds`, learned from `blocks` [n, F_i]."""
    classes, y = np.unique(labels, return_inverse=True)
    scores = _scores(_joined(blocks, blocks), np.eye(len(classes))[y], _joined(others, blocks))
    return float((classes[scores.argmax(1)] == truth).mean())


def _scores_in_folds(blocks: Blocks, y: NDArray[np.int64], classes: int) -> Array:
    """[n, classes]: scores of each sample, learned from the other two thirds."""
    x = _joined(blocks, blocks)
    fold = _folds(len(y))
    scores = np.zeros((len(y), classes))
    for number in range(_FOLDS):
        own, other = fold != number, fold == number
        scores[other] = _scores(x[own], np.eye(classes)[y[own]], x[other])
    return scores


def _folds(n: int) -> NDArray[np.int64]:
    return np.asarray(np.random.default_rng(0).permutation(n) % _FOLDS)


def _joined(blocks: Blocks, like: Blocks) -> Array:
    """Concatenate blocks [n, F_i] to [n, F], standardised by the mean and spread of those in `like`."""
    parts = []
    for block, known in zip(blocks, like, strict=True):
        values = (block - known.mean(0)) / (known.std(0) + 1e-6)
        if values.shape[1] > _FEATURES:  # in single precision, which takes half the time
            mix = np.random.default_rng(0).standard_normal((values.shape[1], _FEATURES), np.float32)
            values = (values.astype(np.float32) @ mix).astype(float) / values.shape[1] ** 0.5
        parts.append(values)
    return np.concatenate(parts, axis=1)


def _scores(x: Array, member: Array, asked: Array) -> Array:
    """[m, C]: scores of `asked` [m, F] by ridge regression of `member` [n, C] on `x` [n, F]."""
    x, asked = (np.concatenate([one, np.ones((len(one), 1))], axis=1) for one in (x, asked))
    weights = np.linalg.solve(x.T @ x + 0.1 * len(x) * np.eye(x.shape[1]), x.T @ member)
    return np.asarray(asked @ weights)
