"""Rows that are nearly copies of others, and detail that sketches already tell. Plain numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_DIMS = 96  # random projections, of more features: keeps a distance to within some 7 %
_NEAR = 0.12  # of the distance between two samples drawn at random
_NEIGHBOURS = 600  # samples whose nearest neighbour is looked for
_SEVERAL = 3  # training rows that may have the same capsule
_FEATURES = 300
_PAIRS = 2500
_TOLD = 0.05  # size of what a linear map leaves of a child's own detail
_TRIMMED = 4  # fits, each to the better half of the last one's pairs

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


def near_copies(train: Array, held_out: Array) -> tuple[float, float]:
    """Share of held-out rows [n, F] that lie so near to a training row [N, F] that they are hardly two samples, and the
    same share of training rows near to another training row. Rows that are equal count as well.
    """
    shuffled = np.random.default_rng(1).permutation(len(train))
    typical = float(np.median(np.linalg.norm(train - train[shuffled], axis=1)))
    if typical == 0.0:
        return 0.0, 0.0
    asked = held_out[np.linspace(0, len(held_out) - 1, min(len(held_out), _NEIGHBOURS)).astype(int)]
    across = _nearest(asked, train, 0)
    own = train[np.linspace(0, len(train) - 1, min(len(train), _NEIGHBOURS)).astype(int)]
    within = _nearest(own, train, 1)
    return float((across < _NEAR * typical).mean()), float((within < _NEAR * typical).mean())


def shared_capsules(train: NDArray[np.uint64], held_out: NDArray[np.uint64]) -> float:
    """Share of held-out rows that have at least half of their capsules, to the bit, in common with one training row.
    Hashes of capsules [N, k] and [n, k]. A capsule that more than a few training rows have in that place says nothing.
    """
    n, k = held_out.shape
    if not n or k < 2:
        return 0.0
    pairs = []
    for place in range(k):
        order = np.argsort(train[:, place], kind="stable")
        values = train[order, place]
        first, last = (np.searchsorted(values, held_out[:, place], side) for side in ("left", "right"))
        for number in range(_SEVERAL):
            rows = np.flatnonzero((last - first > number) & (last - first <= _SEVERAL))
            pairs.append(rows * len(train) + order[first[rows] + number])
    pair, count = np.unique(np.concatenate(pairs), return_counts=True)
    return float(len(np.unique(pair[2 * count >= k] // len(train))) / n)


def told_by_sketches(sketches: Array, children: Array) -> float:
    """Share of the capsules whose children [n, k, m, D] a linear map tells from the sketches [n, k, d] of the capsule
    and of its two neighbours. One map for all capsules: fitted to the capsules that it fits best, so that the
    others do not disturb it. 0 where there are too few capsules to tell.
    """
    k, m, width = children.shape[1:]
    inner = slice(1, k - 1) if k > 2 else slice(k)  # one at the edge has one neighbour less
    edge = np.concatenate([sketches[:, :1], sketches, sketches[:, -1:]], axis=1)
    around = np.concatenate([edge[:, :-2], edge[:, 1:-1], edge[:, 2:]], axis=2)[:, inner]
    x, y = around.reshape(-1, around.shape[-1]), children[:, inner].reshape(-1, m * width)
    alive = y.any(1)
    chosen = np.random.default_rng(2).permutation(np.flatnonzero(alive))[:_PAIRS]
    x, y = projected(x[chosen], _FEATURES).astype(float), projected(y[chosen]).astype(float)
    x, y = x - x.mean(0), y - y.mean(0)
    if len(x) < 4 * x.shape[1]:
        return 0.0
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


def _nearest(points: Array, among: Array, skip: int) -> Array:
    """[n] distance of points to the nearest row of `among`, or, with skip 1, to the nearest but itself."""
    squares = (points**2).sum(1)[:, None] + (among**2).sum(1) - 2 * points @ among.T
    for _ in range(skip):
        np.put_along_axis(squares, squares.argmin(1)[:, None], np.inf, axis=1)
    return np.sqrt(np.maximum(squares.min(1), 0.0))
