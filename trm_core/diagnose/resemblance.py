"""Linear relations between sketches and children (do sketches already determine them? are they under the wrong
sketches?), and differences between splits. Plain numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trm_core.diagnose.statistics import middle, quantile

_DIMS = 96  # random projections, which keep distances to within some 7 %
_FEATURES = 300
_PAIRS = 2500
_STRETCHES = 8
_TOLD = 0.05  # largest residual of children that a linear map determines, relative to their size
_DEALS = 200
_CARRIED = 5  # rows of the other split that a coordinate's variation should come from
_CONSTANT = 1e-6  # of the largest value: a coordinate that varies by less is constant
_TRIMMED = 4  # fits, each to the half of the pairs that the last one fitted better

Array = NDArray[np.floating]


def projected(features: Array, dims: int = _DIMS) -> Array:
    """[n, F] -> [n, dims] by a random matrix that keeps distances on average; unchanged where F <= dims."""
    features = features.astype(np.float32, copy=False)  # half the time of double precision, and exact enough
    if features.shape[1] <= dims:
        return features
    return (
        features
        @ np.random.default_rng(0).standard_normal((features.shape[1], dims), np.float32)
        / np.float32(dims**0.5)
    )


@dataclass(frozen=True)
class Fit:
    """How much of the sketches a linear map of children explains, as R^2 on other samples. `own`: by their own
    children; `other`: at most, by the children at another position, `where` (not tried if their own explain enough).
    """

    own: float
    other: float
    where: str


def fits_elsewhere(sketches: Array, children: Array) -> Fit:
    """Fit the sketches [n, k, d] of consecutive rows by their children [n, k, m, D] and by those of neighbours."""
    n, k = sketches.shape[:2]
    rows, capsules = slice(1, n - 1), slice(1, k - 1) if k > 2 else slice(k)
    y = projected(sketches[rows, capsules].reshape(-1, sketches.shape[-1])).astype(float)
    x = projected(children.reshape(n * k, -1), _FEATURES).astype(float).reshape(n, k, -1)

    def explained(row: int, capsule: int) -> float:
        return _explained(np.roll(x, (row, capsule), (0, 1))[rows, capsules].reshape(len(y), -1), y)

    own = explained(0, 0)
    shifts = {"row before": (1, 0), "row after": (-1, 0)}
    if k > 2:
        shifts |= {"capsule before": (0, 1), "capsule after": (0, -1)}
    others = {} if own > 0.75 else {f"the {name}": explained(*shift) for name, shift in shifts.items()}
    best = max(others, key=lambda name: others[name], default="")
    return Fit(own, others.get(best, 0.0), best)


def fit_by_stretch(sketches: Array, children: Array) -> tuple[float, float]:
    """R^2 of one linear map from children [n, k, m, D] to sketches [n, k, d], in the stretch of rows where it is lowest
    and in the one where it is highest. (0, 0) if there are too few rows.
    """
    if len(sketches) > 100 * _STRETCHES:
        sketches, children = sketches[::2], children[::2]
    n, k = sketches.shape[:2]
    x, y = projected(children.reshape(n * k, -1)).astype(float), projected(sketches.reshape(n * k, -1)).astype(float)
    x, y = x - x.mean(0), y - y.mean(0)
    if n < 50 * _STRETCHES or len(x) < 10 * x.shape[1] or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return 0.0, 0.0
    left = y - x @ _ridge(x, y)
    wrong, size = (np.array_split((values**2).sum(1), _STRETCHES) for values in (left, y))
    found = [1 - part.sum() / max(whole.sum(), 1e-30) for part, whole in zip(wrong, size, strict=True)]
    return float(min(found)), float(max(found))


def _explained(x: Array, y: Array) -> float:
    """R^2 of ridge regression of y [n, G] on x [n, F], fitted on half of the rows and measured on the others."""
    sound = np.flatnonzero(np.isfinite(x).all(1) & np.isfinite(y).all(1))
    chosen = np.random.default_rng(3).permutation(sound)[: 2 * _PAIRS]
    x, y = x - x[chosen].mean(0), y - y[chosen].mean(0)
    learned, judged = chosen[::2], chosen[1::2]
    if len(learned) < 3 * x.shape[1]:
        return 0.0
    left = y[judged] - x[judged] @ _ridge(x[learned], y[learned])
    size = float((y[judged] ** 2).sum())
    return max(0.0, 1 - float((left**2).sum()) / size) if size else 0.0


def _ridge(x: Array, y: Array) -> Array:
    """[F, G]: the linear map from x [n, F] to y [n, G]."""
    gram = x.T @ x
    return np.linalg.solve(gram + (1e-3 * np.trace(gram) / len(gram) + 1e-30) * np.eye(len(gram)), x.T @ y)


@dataclass(frozen=True)
class Shift:
    """How rows differ from those of training, as medians over coordinates. `moved`: distance of the means, in standard
    deviations of training; `scale`: ratio of the standard deviations.
    """

    moved: float
    scale: float

    @property
    def apart(self) -> float:
        """The larger of both differences, where 1 means half a standard deviation or a factor of 1.5 in spread."""
        return max(self.moved / 0.5, abs(math.log(max(self.scale, 1e-3))) / math.log(1.5))


def shift_between(train: Array, other: Array) -> Shift:
    """Compare rows [n, F] with those of training [N, F], over the coordinates that allow it; see `_telling`."""
    chosen = _telling(train, len(other))
    train, other = train[:, chosen].astype(float), other[:, chosen].astype(float)
    return _medians(np.abs(other.mean(0) - train.mean(0)), train.std(0), other.std(0))


def shift_by_chance(train: Array, other: Array) -> float:
    """The largest `Shift.apart` when the same rows are dealt at random into splits of these sizes, over the same
    coordinates (a permutation test). Some coordinates, such as those of the last capsules of a text, hardly have the
    same spread in any two small splits.
    """
    chosen = _telling(train, len(other))
    rows = np.concatenate([train[:, chosen], other[:, chosen]]).astype(float)
    rows -= rows.mean(0)
    held_out, random = np.arange(len(rows)) < len(other), np.random.default_rng(0)
    dealt = np.stack([random.permutation(held_out) for _ in range(_DEALS)]).astype(float)
    sums, squares, whole = dealt @ rows, dealt @ rows**2, (rows**2).sum(0)
    mean, theirs = -sums / len(train), sums / len(other)
    spread = np.sqrt(np.maximum((whole - squares) / len(train) - mean**2, 0))
    spreads = np.sqrt(np.maximum(squares / len(other) - theirs**2, 0))
    return max(_medians(*deal).apart for deal in zip(np.abs(theirs - mean), spread, spreads, strict=True))


def _telling(train: Array, rows: int) -> NDArray[np.bool_]:
    """[F] bool: the coordinates of training [N, F] that can be compared with `rows` other rows. Of those that vary, the
    ones whose variation would come from enough of these rows, and at least a tenth.
    """
    away = train.astype(float)
    largest = np.abs(away).max(0)
    away -= away.mean(0)
    squares = away**2
    total = squares.sum(0)
    varies: NDArray[np.bool_] = np.sqrt(total / len(train)) > _CONSTANT * (largest + 1e-12)
    if not varies.any():
        return varies
    carried = total**2 / np.maximum((squares**2).sum(0), 1e-300)  # effective number of rows that vary
    least = min(_CARRIED * len(train) / rows, quantile(carried[varies], 0.9))
    return varies & (carried >= least)


def _medians(moved: Array, spread: Array, theirs: Array) -> Shift:
    """The medians over coordinates. `spread` [F]: of training; `theirs` [F]: of the other rows."""
    varies = spread > 0
    if not varies.any():
        return Shift(0.0, 1.0)
    spread = spread[varies]
    return Shift(middle(moved[varies] / spread), middle(theirs[varies] / spread))


def told_by_sketches(sketches: Array, children: Array) -> float:
    """Share of the capsules whose children [n, k, m, D] a linear map determines from the sketches [n, k, d] of the
    capsule and of its two neighbours. One map serves all capsules; it is fitted to those that it fits best (least
    trimmed squares), so that the others do not distort it. 0 if there are too few capsules to tell.
    """
    k, m, width = children.shape[1:]
    inner = slice(1, k - 1) if k > 2 else slice(k)  # a capsule at the edge lacks a neighbour
    edge = np.concatenate([sketches[:, :1], sketches, sketches[:, -1:]], axis=1)
    around = np.concatenate([edge[:, :-2], edge[:, 1:-1], edge[:, 2:]], axis=2)[:, inner]
    x, y = around.reshape(-1, around.shape[-1]), children[:, inner].reshape(-1, m * width)
    alive = y.any(1)
    chosen = np.random.default_rng(2).permutation(np.flatnonzero(alive))[:_PAIRS]
    x, y = projected(x[chosen], _FEATURES).astype(float), projected(y[chosen]).astype(float)
    x, y = x - x.mean(0), y - y.mean(0)
    if len(x) < 4 * x.shape[1]:
        return 0.0
    # If children have few distinct values, as categories do, even a constant map gets many of them right.
    told, alike = (_told(values, y) for values in (x, np.ones((len(x), 1))))
    return told if told > alike + 0.2 else 0.0


def _told(x: Array, y: Array) -> float:
    """Share of the rows of y [n, G] that a linear map of x [n, F] determines; see `told_by_sketches`."""
    learned, judged = np.arange(0, len(x), 2), np.arange(1, len(x), 2)
    best, fit = learned, x
    for _ in range(_TRIMMED):
        gram = x[best].T @ x[best]
        fit = np.linalg.solve(gram + 1e-9 * (np.trace(gram) + 1e-30) * np.eye(x.shape[1]), x[best].T @ y[best])
        left = np.linalg.norm(y[learned] - x[learned] @ fit, axis=1)
        best = learned[np.argsort(left)[: max(len(learned) // 2, 2 * x.shape[1])]]
    size = np.sqrt(np.mean(np.sum(y**2, axis=1)))
    left = np.linalg.norm(y[judged] - x[judged] @ fit, axis=1)
    return float((left < _TOLD * size).mean()) if size else 0.0
