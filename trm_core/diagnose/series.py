"""What a run logged: one series of numbers per metric. Imports neither torch nor pydantic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUMERIC = (float, int, type(None))
_Part = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]  # places in the file, steps and values


@dataclass(frozen=True)
class Series:
    """One metric: `steps` [n], rising, and `values` [n], with NaN for logged values that were not finite."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def last(self) -> float:
        """The newest value; NaN if there is none."""
        return float(self.values[-1]) if len(self) else float("nan")

    def finite(self) -> Series:
        """The series without values that are not finite."""
        keep = np.isfinite(self.values)
        return Series(self.steps[keep], self.values[keep])

    def between(self, first: float, last: float = float("inf")) -> Series:
        """Steps `first` to `last`, both included."""
        keep = (self.steps >= first) & (self.steps <= last)
        return Series(self.steps[keep], self.values[keep])

    def tail(self, share: float = 0.2, least: int = 5) -> Series:
        """The newest `share` of the lines, at least `least` of them."""
        count = max(round(share * len(self)), least)
        return Series(self.steps[-count:], self.values[-count:])

    def head(self, share: float, least: int = 5) -> Series:
        """The oldest `share` of the lines, at least `least` of them."""
        count = max(round(share * len(self)), least)
        return Series(self.steps[:count], self.values[:count])


def together(one: Series, other: Series) -> tuple[Series, Series]:
    """Both series at the steps where both are finite; if a step occurs twice, its first value."""
    one, other = one.finite(), other.finite()
    steps, here, there = np.intersect1d(one.steps, other.steps, return_indices=True)
    return Series(steps, one.values[here]), Series(steps, other.values[there])


NOTHING = Series(np.zeros(0, np.int64), np.zeros(0))


class Metrics:
    """All series of a run, by name. A metric that was never logged has an empty series."""

    def __init__(self, series: Mapping[str, Series], notes: Iterable[str] = ()) -> None:
        self.series = dict(series)
        self.notes = list(notes)  # how they were read, where a reader should know

    def __getitem__(self, name: str) -> Series:
        return self.series.get(name, NOTHING)

    def __contains__(self, name: str) -> bool:
        return name in self.series

    def __iter__(self) -> Iterator[str]:
        return iter(self.series)

    @property
    def last_step(self) -> int:
        """The newest step that was logged; 0 if none was."""
        return max((int(series.steps[-1]) for series in self.series.values() if len(series)), default=0)


def from_lines(lines: Iterable[Mapping[str, object]], notes: Iterable[str] = ()) -> Metrics:
    """Build series from records {"step": n, name: number or null, ...} in step order; other values are ignored."""
    places: dict[tuple[str, ...], list[int]] = {}
    rows: dict[tuple[str, ...], list[Iterable[object]]] = {}  # of records with the same names, which become columns
    for place, line in enumerate(lines):
        if isinstance(line.get("step"), int):
            names = tuple(line)
            places.setdefault(names, []).append(place)
            rows.setdefault(names, []).append(line.values())
    parts: dict[str, list[_Part]] = {}
    for names, table in rows.items():
        columns = dict(zip(names, zip(*table, strict=True), strict=True))
        steps, where = np.array(columns.pop("step"), np.int64), np.array(places[names], np.int64)
        for name, column in columns.items():
            if (part := _part(where, steps, column)) is not None:
                parts.setdefault(name, []).append(part)
    return Metrics({name: _joined(found) for name, found in parts.items()}, notes)


def _part(places: NDArray[np.int64], steps: NDArray[np.int64], column: tuple[object, ...]) -> _Part | None:
    """What a column holds in numbers; None if that is nothing."""
    if not all(issubclass(kind, _NUMERIC) for kind in set(map(type, column))):
        kept = [index for index, value in enumerate(column) if isinstance(value, _NUMERIC)]
        if not kept:
            return None
        places, steps, column = places[kept], steps[kept], tuple(column[index] for index in kept)
    try:
        values = np.array(column, float)  # null becomes NaN
    except OverflowError:
        values = np.array([_finite_float(value) for value in column])
    values[~np.isfinite(values)] = np.nan
    return places, steps, values


def _finite_float(value: Any) -> float:
    """NaN for null and for an integer too large for a float."""
    try:
        return float("nan") if value is None else float(value)
    except OverflowError:
        return float("nan")


def _joined(parts: list[_Part]) -> Series:
    """One series of parts whose records alternate in the file."""
    if len(parts) == 1:
        return Series(*parts[0][1:])
    places, steps, values = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(places)
    return Series(steps[order], values[order])
