"""Curves of accuracy over opened capsules, and their figures: areas, shares, intervals over seeds.

Symbols: k capsules, S seeds, G points of the common grid. Accuracies are in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

GROUPS = ("ours", "reference", "field", "peeks")
Group = Literal["ours", "reference", "field", "peeks"]
PLACES_PER_CAPSULE = 20
EARLY = 0.4  # share of the capsules that counts as "few opened"


@dataclass(frozen=True)
class Point:
    """A method at one setting (price, confidence or number of capsules): means over the rows of the split."""

    setting: float | None
    opened: float
    spent: float
    accuracy: float
    steps: float | None = None  # reasoning steps, if the method has any


@dataclass(frozen=True)
class Curve:
    """One method of one seed. `family`: the predictor that answers, with a never, all and random order of its own."""

    name: str
    group: Group
    family: str
    points: list[Point]

    def record(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_record(record: dict[str, Any]) -> Curve:
        return Curve(record["name"], record["group"], record["family"], [Point(**p) for p in record["points"]])


def grid(num_capsules: int) -> np.ndarray:
    """[G] numbers of opened capsules from 0 to k."""
    return np.linspace(0.0, num_capsules, num_capsules * PLACES_PER_CAPSULE + 1)


def on_grid(points: Sequence[Point], places: np.ndarray) -> np.ndarray:
    """[G] accuracy at each number of opened capsules.

    Linear between points, which randomising between two settings attains; points with equal numbers are averaged.
    Beyond the last point its accuracy holds, because opening fewer is always allowed. Before the first point its
    accuracy holds as well, so every curve should have a point at 0.
    """
    assert points, "a curve has at least one point"
    opened = np.array([p.opened for p in points])
    accuracy = np.array([p.accuracy for p in points])
    at, where = np.unique(opened, return_inverse=True)
    mean = np.bincount(where, accuracy) / np.bincount(where)
    return np.interp(places, at, mean)


def area(values: np.ndarray, places: np.ndarray) -> float:
    """Mean of `values` over the range of `places`, by the trapezoidal rule."""
    return float(np.trapezoid(values, places) / (places[-1] - places[0]))


def share(part: float, whole: float) -> float | None:
    """part / whole; None if the whole is nothing."""
    return part / whole if whole > 1e-6 else None


@dataclass(frozen=True)
class Reference:
    """Accuracy of a family's predictor without selection: with nothing open, everything, and in a random order [G]."""

    never: float
    everything: float
    random: np.ndarray


def figures(values: np.ndarray, places: np.ndarray, reference: Reference) -> dict[str, float | None]:
    """The figures of one curve [G] of one seed.

    area: mean accuracy over 0..k opened; area_early: over 0..0.4 k; way_early: share of the way from `never` to `all`
    at 0.4 k opened; gap_share: share of the area between the random order and `all` that the curve closes;
    gap_share_early: the same over 0..0.4 k.
    """
    early = places <= EARLY * places[-1] + 1e-9
    gained, gap = values - reference.random, reference.everything - reference.random
    return {
        "area": area(values, places),
        "area_early": area(values[early], places[early]),
        "way_early": share(float(values[early][-1]) - reference.never, reference.everything - reference.never),
        "gap_share": share(area(gained, places), area(gap, places)),
        "gap_share_early": share(area(gained[early], places[early]), area(gap[early], places[early])),
    }


def interval(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean of S values and its 95 % interval by Student's t; no interval for a single value. None is ignored."""
    kept = np.array([v for v in values if v is not None], dtype=float)
    if len(kept) == 0:
        return {"mean": None, "low": None, "high": None, "seeds": 0}
    mean = float(kept.mean())
    half = t_half_width(kept)
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {"mean": mean, "low": low, "high": high, "seeds": len(kept)}


def t_half_width(values: np.ndarray) -> float | None:
    """Half the width of the 95 % t interval of the mean of `values` [S]; None for S = 1."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    return float(t.ppf(0.975, len(values) - 1)) * float(values.std(ddof=1)) / math.sqrt(len(values))
