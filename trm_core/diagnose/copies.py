"""Find held-out rows that nearly equal a training row or share half of its capsules, and rows that repeat.

Plain numpy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trm_core.data.fields import IGNORE_LABEL
from trm_core.diagnose.statistics import middle

_NEAR = 0.12  # as a share of the typical distance between two random samples
_NEIGHBOURS = 600  # samples whose nearest neighbour is searched for
_FEW = 5  # rows: a share of fewer says little
_FEWEST = 3  # near rows: so many are no coincidence if training rows have nothing in common
_SEVERAL = 3  # training rows that may have the same capsule
_ALONE = 1.45  # growth in pairs when the distance doubles; even rows spread along a line have 2
_WIDER = 1.5  # copies with more noise have their neighbours within this many times the distance
_MOST_OF_CLASS = 0.5
_HASH_SEED = 11

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Copies:
    """`near`: share of the held-out rows so similar to a training row that they may be the same sample; `within`: the
    same for training rows compared with other training rows (not looked at, and 0, if no held-out row is near). Both
    include rows that are equal. `rows`: how many held-out rows are near.

    Where rows lie densely, such as those of a table with few columns, many are near to unrelated ones. Copies are told
    from these because their labels agree and density does not explain them. `beyond_density`: the part of `near` that
    density does not explain. The number of pairs within a distance grows as a power of it (the correlation dimension;
    Grassberger and Procaccia, 1983), here extrapolated from two and four times the distance. `growth`: by what factor
    the number of pairs grows when the distance doubles, or one and a half times the distance, whatever is less (noisy
    copies reach further); about 1 if each sample is alone with its copies. `agree`: share of near rows whose nearest
    training row has their label; `agree_any`: the same for a random training row (NaN if too few rows have a label).
    That labels agree less at larger distances proves nothing: they do wherever classes lie apart. `of_class`: the share
    of a near row's class that lies within twice the distance.
    """

    near: float = 0.0
    within: float = 0.0
    beyond_density: float = 0.0
    agree: float = math.nan
    agree_any: float = math.nan
    growth: float = math.inf
    of_class: float = 0.0
    rows: int = 0

    @property
    def are_copies(self) -> bool:
        """Whether the near rows are copies rather than mere neighbours. False if there are too few."""
        if self.rows < _FEWEST:
            return False
        if self.within < 0.25 * self.near:
            return True  # density would bring training rows as close to each other
        if self.rows < _FEW:
            return False
        unexplained = self.beyond_density >= 0.5 * self.near
        if math.isnan(self.agree):
            return unexplained
        alike = self.agree - self.agree_any >= 0.85 * (1 - self.agree_any)
        # If a whole class lies as close together as copies do, it is an easy class.
        return alike and self.of_class < _MOST_OF_CLASS and (unexplained or self.growth < _ALONE)


@dataclass(frozen=True)
class Labelled:
    """Labels of training rows [N] and of held-out rows [n]; IGNORE_LABEL for a row without one."""

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]

    def of_class(self, rows: NDArray[np.int64], close: NDArray[np.bool_]) -> float:
        """Median over held-out rows [n] of the share of the row's class that is `close` [n, N]; 0 without labels."""
        alike = self.held_out[rows, None] == self.train
        alike &= (self.held_out[rows] != IGNORE_LABEL)[:, None]
        known = alike.any(1)
        shares = (alike & close)[known].sum(1) / alike[known].sum(1)
        return middle(shares) if len(shares) else 0.0

    def agree(self, rows: NDArray[np.int64], of_rows: NDArray[np.int64]) -> float:
        """Share of the held-out rows whose label equals that of their training row, among pairs in which both have one;
        NaN if there are few such pairs.
        """
        here, there = self.held_out[rows], self.train[of_rows]
        known = (here != IGNORE_LABEL) & (there != IGNORE_LABEL)
        return float((here == there)[known].mean()) if known.sum() >= _FEW else math.nan

    @property
    def agree_any(self) -> float:
        """Share of pairs of training rows with equal labels."""
        counts = np.unique(self.train[self.train != IGNORE_LABEL], return_counts=True)[1]
        return float(((counts / counts.sum()) ** 2).sum()) if len(counts) else math.nan


def near_copies(train: Array, held_out: Array, labels: Labelled | None = None) -> Copies:
    """Compare held-out rows [n, F] with training rows [N, F], using `labels` if rows have one."""
    shuffled = np.random.default_rng(1).permutation(len(train))
    typical = middle(np.linalg.norm(train - train[shuffled], axis=1))
    if typical == 0.0 or not len(held_out):
        return Copies()
    near = (_NEAR * typical) ** 2
    chosen = np.linspace(0, len(held_out) - 1, min(len(held_out), _NEIGHBOURS)).astype(int)
    squares = _squares(held_out[chosen], train)
    share = float((squares.min(1) < near).mean())
    if not share:
        return Copies()
    own = train[np.linspace(0, len(train) - 1, min(len(train), _NEIGHBOURS)).astype(int)]
    own_squares = _squares(own, train)
    itself = own_squares.argmin(1)[:, None]  # its nearest, which is left out
    np.put_along_axis(own_squares, itself, np.inf, axis=1)
    within = float((own_squares.min(1) < near).mean())
    pairs, double, quadruple = (float((squares < factor**2 * near).mean()) for factor in (1, 2, 4))
    beyond = share * max(0.0, 1 - double**2 / (quadruple * pairs))
    rows = np.flatnonzero(squares.min(1) < near)
    wider, doubled = (float((squares < (factor * _WIDER) ** 2 * near).mean()) for factor in (1, 2))
    growth = min(double / pairs, doubled / wider)
    if labels is None:
        return Copies(share, within, beyond, growth=growth, rows=len(rows))
    agree = labels.agree(chosen[rows], squares[rows].argmin(1))
    of_class = labels.of_class(chosen[rows], squares[rows] < 4 * near)
    return Copies(share, within, beyond, agree, labels.agree_any, growth, of_class, len(rows))


def shared_copies(train: NDArray[np.uint64], held_out: NDArray[np.uint64], labels: Labelled | None = None) -> Copies:
    """Held-out rows that share at least half of their capsules, bit for bit, with one training row. `train` [N, k] and
    `held_out` [n, k] are hashes of capsules.
    """
    rows, of_rows = shared_capsules(train, held_out)
    if not len(rows):
        return Copies()
    some = min(len(held_out), len(train) // 4)
    within = len(shared_capsules(train[some:], train[:some])[0]) / max(some, 1)
    share = len(rows) / len(held_out)
    agree = math.nan if labels is None else labels.agree(rows, of_rows)
    agree_any = math.nan if labels is None else labels.agree_any
    return Copies(share, within, share, agree, agree_any, rows=len(rows))


def shared_capsules(
    train: NDArray[np.uint64], held_out: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Held-out rows that share at least half of their capsules, bit for bit, with one training row, and that row.
    `train` [N, k] and `held_out` [n, k] are hashes of capsules, compared at the same position. A capsule that more than
    `_SEVERAL` training rows have in that position says nothing and does not count.
    """
    n, k = held_out.shape
    if not n or k < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    pairs = []
    for place in range(k):
        order = np.argsort(train[:, place], kind="stable")
        values = train[order, place]
        first, last = (np.searchsorted(values, held_out[:, place], side) for side in ("left", "right"))
        for number in range(_SEVERAL):
            rows = np.flatnonzero((last - first > number) & (last - first <= _SEVERAL))
            pairs.append(rows * len(train) + order[first[rows] + number])
    pair, count = np.unique(np.concatenate(pairs), return_counts=True)
    row, first_of = np.unique(pair[2 * count >= k] // len(train), return_index=True)
    return row, pair[2 * count >= k][first_of] % len(train)


def row_hashes(arrays: Iterable[np.ndarray]) -> NDArray[np.uint64]:
    """[n] hashes: equal for rows that are equal in all arrays [n, ...]; other rows collide once in 2^64."""
    total = np.zeros(1, np.uint64)
    for number, array in enumerate(arrays):
        flat = np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)
        words = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 8))).view(np.uint64)
        factors = np.random.default_rng([_HASH_SEED, number]).integers(0, 2**64, words.shape[1], np.uint64)
        # Each array: a sum of products with random factors. Between arrays: a mix of the bits.
        mixed = (words ^ (words >> np.uint64(29))) * factors
        total = (total ^ (total >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15) + mixed.sum(1, dtype=np.uint64)
    return total


def _squares(points: Array, among: Array) -> Array:
    """[n, N] squared Euclidean distances: |p|^2 + |q|^2 - 2 p.q as one product, which passes over its result once."""
    ours = np.concatenate([-2 * points, np.ones_like(points[:, :1]), (points**2).sum(1, keepdims=True)], axis=1)
    theirs = np.concatenate([among, (among**2).sum(1, keepdims=True), np.ones_like(among[:, :1])], axis=1)
    return np.asarray(ours @ theirs.T)
