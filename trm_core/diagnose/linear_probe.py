"""What a linear probe finds in samples and labels: inside of a split, across splits, in a part of one. Plain numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

_FEATURES = 400  # random projections of more
_FOLDS = 3
_BLOCKS = 20  # of neighbouring samples

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Stretch:
    """Neighbouring samples on which a probe is right far less often than on the others. `begin`, `end`: where they lie,
    in shares of the split; `inside`, `outside`: accuracies.
    """

    begin: float
    end: float
    inside: float
    outside: float


def broken_stretch(right: NDArray[np.bool_], labels: NDArray[np.int64], chance: float) -> Stretch | None:
    """The neighbouring samples whose labels seem to belong to others: a probe is near chance there and well above it
    elsewhere. right [n]: whether it is right, in the order of the file.

    A stretch that lacks half of the classes is left out: in a file that is sorted by class it is a hard class.
    """
    edges = np.linspace(0, len(right), _BLOCKS + 1).astype(int)
    hits = np.concatenate([[0], np.cumsum(right)])[edges]
    classes = len(np.unique(labels))
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
        if len(np.unique(labels[edges[first] : edges[last]])) < 0.6 * classes:
            continue
        most = (outside - inside) / error
        found = Stretch(first / _BLOCKS, last / _BLOCKS, float(inside), float(outside))
    return found


def right_in_folds(features: Array, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[n]: whether ridge regression onto classes, learned from two other thirds, is right; features [n, F] are
    standardised and, past 400, projected at random.
    """
    generator = np.random.default_rng(0)
    x = (features - features.mean(0)) / (features.std(0) + 1e-6)
    if x.shape[1] > _FEATURES:
        x = x @ generator.standard_normal((x.shape[1], _FEATURES)) / np.sqrt(x.shape[1])
    fold = generator.permutation(len(labels)) % _FOLDS
    right = np.zeros(len(labels), np.bool_)
    for number in range(_FOLDS):
        own, other = fold != number, fold == number
        right[other] = _answers(x[own], labels[own], x[other]) == labels[other]
    return right


def right_elsewhere(features: Array, labels: NDArray[np.int64], others: Array, truth: NDArray[np.int64]) -> float:
    """Accuracy on others [m, F] of the ridge regression of `right_in_folds` learned from features [n, F]."""
    mean, spread = features.mean(0), features.std(0) + 1e-6
    x, z = (features - mean) / spread, (others - mean) / spread
    if x.shape[1] > _FEATURES:  # in single precision, which takes half of the time
        mix = np.random.default_rng(0).standard_normal((x.shape[1], _FEATURES), np.float32)
        x, z = ((one.astype(np.float32) @ mix).astype(float) / x.shape[1] ** 0.5 for one in (x, z))
    return float((_answers(x, labels, z) == truth).mean())


def _answers(x: Array, labels: NDArray[np.int64], asked: Array) -> NDArray[np.int64]:
    """[m] classes of asked [m, F], by the ridge regression that x [n, F] and labels [n] teach."""
    x, asked = (np.concatenate([one, np.ones((len(one), 1))], axis=1) for one in (x, asked))
    classes, y = np.unique(labels, return_inverse=True)
    weights = np.linalg.solve(x.T @ x + 0.1 * len(x) * np.eye(x.shape[1]), x.T @ np.eye(len(classes))[y])
    return np.asarray(classes[(asked @ weights).argmax(1)])
