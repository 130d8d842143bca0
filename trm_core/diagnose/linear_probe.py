"""What a linear probe finds in samples and labels: inside of a split, across splits, in a part of one. Plain numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

_FEATURES = 300  # random projections of more, of one block
_FOLDS = 3
_BLOCKS = 20  # of neighbouring samples

Array = NDArray[np.float64]
Blocks = Sequence[Array]


@dataclass(frozen=True)
class Stretch:
    """Neighbouring samples on which a probe is right far less often than on the others. `begin`, `end`: where they lie,
    in shares of those that were looked at (or, `in_file`, of the split); `inside`, `outside`: accuracies; `share`: how
    many of those that were looked at they are.
    """

    begin: float
    end: float
    inside: float
    outside: float
    share: float

    def in_file(self, rows: NDArray[np.int64], total: int) -> Stretch:
        """The same in shares of a split of `total` rows, of which rows [n] were looked at."""
        first, last = round(self.begin * len(rows)), round(self.end * len(rows)) - 1
        return replace(self, begin=float(rows[first] / total), end=float((rows[last] + 1) / total))


def broken_stretch(right: NDArray[np.bool_], labels: NDArray[np.int64], chance: float) -> Stretch | None:
    """The neighbouring samples whose labels seem to belong to others: a probe is near chance there and well above it
    elsewhere. right [n]: whether it is right, in the order of the file.

    A stretch with other shares of the classes than the rest is left out, unless it has many of the classes: in a file
    that is sorted, by class or by what goes with it, it is a hard part.
    """
    edges = np.linspace(0, len(right), _BLOCKS + 1).astype(int)
    hits = np.concatenate([[0], np.cumsum(right)])[edges]
    _, y = np.unique(labels, return_inverse=True)
    counts = np.concatenate([np.zeros((1, y.max() + 1)), np.cumsum(np.eye(y.max() + 1)[y], axis=0)])[edges]
    found, most = None, 6.0  # standard errors: there are some two hundred stretches
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
    """`told_apart` of the samples of a stretch by a probe of their own. Where it is well above 0.5 nothing is broken:
    inputs tell labels there too, in another way, as in a file that is ordered by place or time.
    """
    rows = slice(round(stretch.begin * len(labels)), round(stretch.end * len(labels)))
    return told_apart([block[rows] for block in blocks], labels[rows])


def right_in_folds(blocks: Blocks, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[n]: whether ridge regression onto classes, learned from two other thirds, is right. Features are blocks
    [n, F_i]: standardised, and projected at random where a block has more than 300.
    """
    classes, y = np.unique(labels, return_inverse=True)
    return np.asarray(_scores_in_folds(blocks, y, len(classes)).argmax(1) == y)


def told_apart(blocks: Blocks, labels: NDArray[np.int64]) -> float:
    """How often a member of a class gets a higher score for it than one that is none, by the ridge regression of
    `right_in_folds`: the mean over classes with at least ten members (area under the ROC curve, 0.5 by chance). Unlike
    accuracy it does not suffer where one class is far more frequent than the others.
    """
    classes, y = np.unique(labels, return_inverse=True)
    scores, folds = _scores_in_folds(blocks, y, len(classes)), _folds(len(y))
    areas = []
    for number, count in enumerate(np.bincount(y)):
        if 10 <= count < len(y):
            # Inside of a fold: the scores of two regressions do not compare.
            won, pairs = np.sum(
                [_pairs_won(scores[folds == f, number], y[folds == f] == number) for f in range(_FOLDS)], axis=0
            )
            areas.append(won / max(pairs, 1.0))
    return float(np.mean(areas)) if areas else 0.5


def _pairs_won(scores: Array, member: NDArray[np.bool_]) -> tuple[float, float]:
    """How many pairs of a member and another the member wins (a draw is half a win), and how many there are."""
    others = np.sort(scores[~member])
    below, not_above = (np.searchsorted(others, scores[member], side) for side in ("left", "right"))
    return float((below + not_above).sum() / 2), float(member.sum() * len(others))


def right_elsewhere(blocks: Blocks, labels: NDArray[np.int64], others: Blocks, truth: NDArray[np.int64]) -> float:
    """Accuracy on others [m, F_i] of the ridge regression of `right_in_folds` learned from blocks [n, F_i]."""
    classes, y = np.unique(labels, return_inverse=True)
    scores = _scores(_joined(blocks, blocks), np.eye(len(classes))[y], _joined(others, blocks))
    return float((classes[scores.argmax(1)] == truth).mean())


def _scores_in_folds(blocks: Blocks, y: NDArray[np.int64], classes: int) -> Array:
    """[n, classes] of each sample, learned from the two other thirds."""
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
    """[n, F] of blocks [n, F_i], in units of the spread of those in `like`."""
    parts = []
    for block, known in zip(blocks, like, strict=True):
        values = (block - known.mean(0)) / (known.std(0) + 1e-6)
        if values.shape[1] > _FEATURES:  # in single precision, which takes half of the time
            mix = np.random.default_rng(0).standard_normal((values.shape[1], _FEATURES), np.float32)
            values = (values.astype(np.float32) @ mix).astype(float) / values.shape[1] ** 0.5
        parts.append(values)
    return np.concatenate(parts, axis=1)


def _scores(x: Array, member: Array, asked: Array) -> Array:
    """[m, C] of asked [m, F], by the ridge regression of member [n, C] on x [n, F]."""
    x, asked = (np.concatenate([one, np.ones((len(one), 1))], axis=1) for one in (x, asked))
    weights = np.linalg.solve(x.T @ x + 0.1 * len(x) * np.eye(x.shape[1]), x.T @ member)
    return np.asarray(asked @ weights)
