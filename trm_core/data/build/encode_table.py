"""Rows of a table to capsules: a group of columns is a capsule, each of its columns a child.

A numeric column is [standardised value, missing flag, 0...], with the value clipped at 10,000 standard deviations; a
categorical one is one-hot in all dimensions but the last, by rank where its categories fit and by a fixed hash
otherwise, with the missing flag in the last.
"""

from __future__ import annotations

import difflib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from trm_core.config.schema import BuildConfig
from trm_core.data.build.encoders import Encoded, State
from trm_core.data.build.recorded import Arrays, Spec, as_bytes
from trm_core.data.build.records import Log
from trm_core.data.build.tables import Column, is_missing, to_number
from trm_core.errors import ConfigError, DataError

_MAX_AUTO_DIM = 16
_FIT_ROWS = 100_000
# In standard deviations from the mean: an outlier far beyond all training values must not end a build, and half
# precision ends at 65,504.
_FAR = 1e4


@dataclass(frozen=True)
class Group:
    """A capsule: its name and the positions of its columns."""

    name: str
    columns: tuple[int, ...]


class TableEncoder:
    """k groups, m columns in the largest group."""

    name = "columns"
    default_sketch = "none"
    masks = False
    parents = False  # groups of columns have no order among themselves
    label_rank = 1
    given_checksums = 0
    fit_rows = _FIT_ROWS

    def __init__(self, columns: Sequence[Column], groups: Sequence[Group], num_children: int, dim: int) -> None:
        self.columns = list(columns)
        self.groups = list(groups)
        self.num_capsules = len(groups)
        self.num_children = num_children
        self.dim = dim
        self._mean = np.zeros(len(columns))
        self._spread = np.ones(len(columns))
        self._ranks: list[dict[str, int]] = [{} for _ in columns]

    def fit(self, contents: Sequence[tuple[str, ...]], seed: int) -> None:
        for number, column in enumerate(self.columns):
            cells = [row[number] for row in contents if not is_missing(row[number])]
            if column.numeric:
                values = np.asarray([float(cell) for cell in cells])
                self._mean[number] = values.mean() if len(values) else 0.0
                # For a column of equal values std() returns rounding noise.
                spread = float(values.std()) if len(values) and values.min() < values.max() else 0.0
                self._spread[number] = spread if spread > 0 else 1.0
            else:
                self._set_categories(number, sorted(set(cells)))

    def encode(self, contents: Sequence[tuple[str, ...]]) -> Encoded:
        children = np.zeros((len(contents), self.num_capsules, self.num_children, self.dim), dtype=np.float32)
        real = np.zeros(children.shape[:3], dtype=bool)
        for capsule, group in enumerate(self.groups):
            for child, number in enumerate(group.columns):
                real[:, capsule, child] = True
                self._encode_column(number, [row[number] for row in contents], children[:, capsule, child])
        return Encoded(children, real)

    def state(self) -> State:
        # One list per column, empty for numbers and hashed categories; as JSON, because a cell may hold anything.
        categories = json.dumps([list(ranks) for ranks in self._ranks])
        return {"mean": self._mean, "spread": self._spread, "categories": as_bytes(categories)}

    def load_state(self, state: State) -> None:
        with Arrays(state) as arrays:
            self._mean = arrays.take("mean", "float64", (len(self.columns),))
            self._spread = arrays.take("spread", "float64", (len(self.columns),))
            text = arrays.text("categories")
        if not (self._spread > 0).all():
            raise DataError("array spread holds a number that is not above 0")
        for number, categories in enumerate(_categories(text, len(self.columns))):
            self._set_categories(number, categories)

    def spec(self) -> dict[str, Any]:
        return {
            "columns": [column.name for column in self.columns],
            "numeric": [number for number, column in enumerate(self.columns) if column.numeric],
            "groups": [[group.name, list(group.columns)] for group in self.groups],
            "num_children": self.num_children,
            "dim": self.dim,
        }

    @classmethod
    def from_spec(cls, spec: Spec) -> Self:
        names = spec.texts("columns")
        numeric = set(spec.wholes("numeric", 0, len(names) - 1))
        groups = [_recorded_group(spec, item, len(names)) for item in spec.items("groups")]
        num_children, dim = spec.whole("num_children"), spec.whole("dim", 2)
        spec.close()
        if not groups or max(len(group.columns) for group in groups) > num_children:
            raise DataError(f"{spec.what}: its groups do not fit num_children={num_children}")
        if len(set(names)) < len(names):
            raise DataError(f"{spec.what}: two columns have one name")
        columns = [Column(name, number in numeric, 0) for number, name in enumerate(names)]
        return cls(columns, groups, num_children, dim)

    def settings(self) -> dict[str, Any]:
        return {
            "groups": {group.name: [self.columns[number].name for number in group.columns] for group in self.groups},
            "numeric": [column.name for column in self.columns if column.numeric],
        }

    def truth(self, number: int, value: bool) -> str:
        """How a column spells a truth value: JSON lines hold true, pandas writes True."""
        text = str(value).lower()
        return next((category for category in self._ranks[number] if category.lower() == text), text)

    def _set_categories(self, number: int, categories: list[str]) -> None:
        """Ranks where every category gets a slot of its own; an empty mapping means hashing."""
        self._ranks[number] = {c: rank for rank, c in enumerate(categories)} if len(categories) < self.dim else {}

    def _encode_column(self, number: int, cells: list[str], target: np.ndarray) -> None:
        """Fill `target` [n, D] with one column's cells."""
        column, mean, spread = self.columns[number], float(self._mean[number]), float(self._spread[number])
        for row, cell in enumerate(cells):
            if column.numeric:
                value = None if is_missing(cell) else to_number(cell)
                if value is None:
                    target[row, 1] = 1.0
                else:
                    target[row, 0] = min(max((value - mean) / spread, -_FAR), _FAR)
            elif is_missing(cell):
                target[row, -1] = 1.0
            elif not self._ranks[number]:
                # How a truth value was spelled is not recorded here.
                text = cell.lower() if cell.lower() in ("true", "false") else cell
                target[row, zlib.crc32(text.encode()) % (self.dim - 1)] = 1.0
            elif cell in self._ranks[number]:
                target[row, self._ranks[number][cell]] = 1.0


def _categories(text: str, columns: int) -> list[list[str]]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    good = isinstance(found, list) and len(found) == columns
    if not good or not all(isinstance(each, list) and all(isinstance(c, str) for c in each) for each in found):
        raise DataError(f"array categories is not a list of categories for each of {columns} columns")
    return list(found)


def _recorded_group(spec: Spec, item: Any, columns: int) -> Group:
    if isinstance(item, list) and len(item) == 2:
        group = Spec({"name": item[0], "columns": item[1]}, f"{spec.what}: a group")
        members = group.wholes("columns", 0, columns - 1)
        if members:
            return Group(group.text("name"), members)
    raise DataError(f"{spec.what}: {item!r:.80} is not a group: a name and the numbers of its columns")


def make_groups(columns: Sequence[Column], config: BuildConfig, log: Log) -> list[Group]:
    """The capsules: `groups`, else `num_capsules` runs of neighbouring columns, else one per column."""
    names = [column.name for column in columns]
    if config.groups is None:
        count = len(names) if config.num_capsules == "auto" else config.num_capsules
        if count > len(names):
            raise ConfigError(f"data.build.num_capsules={count}, but the table has only {len(names)} feature columns")
        runs = np.array_split(np.arange(len(names)), count)
        return [Group(_run_name(names, run.tolist()), tuple(run.tolist())) for run in runs]
    if config.num_capsules not in ("auto", len(config.groups)):
        raise ConfigError(
            f"data.build.num_capsules={config.num_capsules}, but data.build.groups has {len(config.groups)} groups"
        )
    owner: dict[str, str] = {}
    for group, members in config.groups.items():
        if not members:
            raise ConfigError(f"data.build.groups.{group} has no columns")
        for name in members:
            if name not in names:
                raise ConfigError(
                    f"data.build.groups.{group}: the table has no feature column {name!r}", hint=near(name, names)
                )
            if name in owner:
                raise ConfigError(f"data.build.groups: column {name!r} is in both {owner[name]!r} and {group!r}")
            owner[name] = group
    if left := [name for name in names if name not in owner]:
        log(f"columns in no group, left out: {', '.join(left)}")
    return [Group(group, tuple(names.index(name) for name in members)) for group, members in config.groups.items()]


def table_encoder(columns: Sequence[Column], groups: Sequence[Group], config: BuildConfig) -> TableEncoder:
    """The encoder, with sizes from the groups and columns or as configured. Raises `ConfigError` if those are too
    small.
    """
    largest = max(len(group.columns) for group in groups)
    children = largest if config.num_children == "auto" else config.num_children
    if children < largest:
        raise ConfigError(f"data.build.num_children={children}, but the largest group has {largest} columns")
    if config.dim == "auto":
        dim = max(2, *(min(_MAX_AUTO_DIM, column.distinct + 1) for column in columns))
    elif config.dim < 2:
        raise ConfigError("tables need data.build.dim of at least 2: a value and a missing flag")
    else:
        dim = config.dim
    return TableEncoder(columns, groups, children, dim)


def group_prices(groups: Sequence[Group], prices: dict[str, float] | None) -> np.ndarray | None:
    """float32 [k], 1 for groups without a price; None if no price is given."""
    if not prices:
        return None
    names = [group.name for group in groups]
    for name in prices:
        if name not in names:
            raise ConfigError(f"data.build.prices: there is no group {name!r}", hint=near(name, names))
    return np.asarray([prices.get(name, 1.0) for name in names], dtype=np.float32)


def near(name: str, names: Sequence[str]) -> str:
    """A hint with the nearest name, or all of them."""
    close = difflib.get_close_matches(name, names, 1)
    return f"did you mean {close[0]!r}?" if close else "there are: " + ", ".join(names)


def _run_name(names: list[str], run: list[int]) -> str:
    return names[run[0]] if len(run) == 1 else f"{names[run[0]]}..{names[run[-1]]}"
