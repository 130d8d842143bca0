"""Find labels that leak through single coordinates of the sketches. Plain numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trm_core.diagnose.statistics import among, distinct

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Leak:
    """How much of the label single coordinates of the sketches give away.

    `told`: share of the classes of which a threshold on one coordinate catches at least 30 %, at a precision of 99 %;
    `coordinates`: these coordinates, as (capsule, dimension); `told_without`: `told` once they are left out. `ordered`:
    with the samples sorted by one coordinate, the share that have the same label as the sample before, for the best
    coordinate and the second best (high if the label was copied in as a number); `at`: the best coordinate; `alike`:
    the share expected in random order.
    """

    told: float
    told_without: float
    coordinates: tuple[tuple[int, int], ...]
    ordered: tuple[float, float]
    at: tuple[int, int]
    alike: float

    @property
    def lifts(self) -> tuple[float, float]:
        """`ordered`, rescaled so that a random order has 0 and all samples 1."""
        best, second = ((share - self.alike) / max(1 - self.alike, 1e-9) for share in self.ordered)
        return best, second


def leak_of(sketches: Array, labels: NDArray[np.int64], dim: int) -> Leak:
    """Measure sketches [n, k * dim] against labels [n]."""
    told, coordinates = told_by_single_coordinates(sketches, labels)
    rest = np.delete(sketches, coordinates, axis=1)
    without = told_by_single_coordinates(rest, labels)[0] if rest.shape[1] else 0.0
    where = tuple(divmod(int(number), dim) for number in coordinates)
    alike = alike_in_order(sketches, labels)
    best, second = np.argsort(-alike)[:2] if len(alike) > 1 else (0, 0)
    at = divmod(int(best), dim)
    ordered = float(alike[best]), float(alike[second])
    by_chance = float(((np.unique(labels, return_counts=True)[1] / len(labels)) ** 2).sum())
    return Leak(told, without, where, ordered, (int(at[0]), int(at[1])), by_chance)


@dataclass(frozen=True)
class Betrayal:
    """A dimension of the sketches that tells the label of training samples, and not of held-out ones. `train`,
    `held_out`: share of its variance that lies between the classes.
    """

    dimension: int
    train: float
    held_out: float


def betrayal_of(
    train: tuple[Array, NDArray[np.int64]], held_out: tuple[Array, NDArray[np.int64]], dim: int
) -> Betrayal | None:
    """Compare sketches [n, k * dim] and labels [n] of two splits. None unless few dimensions lose most of what they
    tell while others keep it: if all do, or if there are no others, the splits may differ as a whole.
    """
    inside, there = between_classes(*train), between_classes(*held_out)
    lost = (inside - there > 0.4) & (there < 0.5 * inside)
    dimensions = np.unique(np.flatnonzero(lost) % dim)
    if not len(dimensions) or len(dimensions) > max(1, 0.1 * dim):
        return None
    rest = ~among(np.arange(len(inside)) % dim, dimensions) & (inside > 0.1)
    if not rest.any() or float(there[rest].sum()) < 0.6 * float(inside[rest].sum()):
        return None
    worst = int(np.where(lost, inside - there, -1.0).argmax())
    return Betrayal(worst % dim, float(inside[worst]), float(there[worst]))


def between_classes(features: Array, labels: NDArray[np.int64]) -> Array:
    """[F]: share of the variance of each feature that lies between the classes, less what is expected by chance; 0 for
    a constant.
    """
    classes, y = np.unique(labels, return_inverse=True)
    n, member = len(labels), np.eye(len(classes))[y]
    centred = features - features.mean(0)
    total = (centred**2).sum(0)
    means = (member.T @ centred) / member.sum(0)[:, None]
    share = (member.sum(0)[:, None] * means**2).sum(0) / np.maximum(total, 1e-30)
    adjusted = 1 - (1 - share) * (n - 1) / max(n - len(classes), 1)
    return np.asarray(np.where(total > 1e-12 * n, np.maximum(adjusted, 0.0), 0.0))


def told_by_single_coordinates(features: Array, labels: NDArray[np.int64]) -> tuple[float, list[int]]:
    """(share of classes that one threshold on one coordinate reveals, those coordinates): see `Leak`."""
    classes = distinct(labels)
    member = labels[:, None] == classes
    counts = member.sum(0)
    means = (member.T @ features) / counts[:, None]
    spread = features.std(0) + 1e-12
    # Only the four coordinates in which a class lies farthest from the overall mean are worth a closer look.
    near = np.argsort(-np.abs(means - features.mean(0)) / spread, axis=1)[:, :4]
    told, used = 0, []
    for number, candidates in enumerate(near):
        caught = {int(c): _caught(features[:, c], member[:, number]) for c in candidates}
        best = max(caught, key=lambda c: caught[c])
        if caught[best] >= 0.3:
            told += 1
            used += [c for c, share in caught.items() if share >= 0.3]
    return told / len(classes), sorted(set(used))


def alike_in_order(features: Array, labels: NDArray[np.int64]) -> Array:
    """[F]: with the samples sorted by each coordinate (ties in random order), the share that have the same label as the
    sample before.
    """
    shuffled = np.random.default_rng(0).permutation(len(labels))
    ordered = labels[shuffled][np.argsort(features[shuffled], axis=0, kind="stable")]
    return np.asarray((ordered[1:] == ordered[:-1]).mean(0))


def _caught(values: Array, member: NDArray[np.bool_]) -> float:
    """Recall of the best threshold, from either side, beyond which at least 99 % of the samples are members."""
    best = 0.0
    for signed in (values, -values):
        order = np.argsort(-signed, kind="stable")
        hits = np.cumsum(member[order])
        ordered = signed[order]
        ends = np.append(ordered[1:] < ordered[:-1], True)  # a threshold does not cut between equal values
        pure = ends & (hits >= 0.99 * np.arange(1, len(values) + 1))
        if pure.any():
            best = max(best, float(hits[pure].max() / max(member.sum(), 1)))
    return best
