"""Rows of a table to capsules: a group of columns is a capsule, each of its columns a child.

A numeric column is [standardised value, missing flag, 0...]; a categorical one is one-hot in all dimensions but the
last, by rank where its categories fit and by a fixed hash otherwise, with the missing flag in the last.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trm_core.config.schema import BuildConfig
from trm_core.data.build.encoders import Encoded, State
from trm_core.data.build.records import Log
from trm_core.data.build.tables import Column, is_missing, to_number
from trm_core.errors import ConfigError

_MAX_AUTO_DIM = 16
_FIT_ROWS = 100_000


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
        self._columns = list(columns)
        self._groups = list(groups)
        self.num_capsules = len(groups)
        self.num_children = num_children
        self.dim = dim
        self._mean = np.zeros(len(columns))
        self._spread = np.ones(len(columns))
        self._ranks: list[dict[str, int]] = [{} for _ in columns]

    def fit(self, contents: Sequence[tuple[str, ...]], seed: int) -> None:
        for number, column in enumerate(self._columns):
            cells = [row[number] for row in contents if not is_missing(row[number])]
            if column.numeric:
                values = np.asarray([float(cell) for cell in cells])
                self._mean[number] = values.mean() if len(values) else 0.0
                spread = float(values.std()) if len(values) else 0.0
                self._spread[number] = spread if spread > 0 else 1.0
            else:
                self._set_categories(number, sorted(set(cells)))

    def encode(self, contents: Sequence[tuple[str, ...]]) -> Encoded:
        children = np.zeros((len(contents), self.num_capsules, self.num_children, self.dim), dtype=np.float32)
        real = np.zeros(children.shape[:3], dtype=bool)
        for capsule, group in enumerate(self._groups):
            for child, number in enumerate(group.columns):
                real[:, capsule, child] = True
                self._encode_column(number, [row[number] for row in contents], children[:, capsule, child])
        return Encoded(children, real)

    def state(self) -> State:
        state: State = {"mean": self._mean, "spread": self._spread}
        for number, ranks in enumerate(self._ranks):
            if ranks:
                # Cells hold no NUL in a text file; a plain byte array needs no pickle.
                state[f"categories{number}"] = np.frombuffer("\0".join(ranks).encode(), dtype=np.uint8)
        return state

    def load_state(self, state: State) -> None:
        self._mean, self._spread = state["mean"], state["spread"]
        for number in range(len(self._columns)):
            if f"categories{number}" in state:
                self._set_categories(number, state[f"categories{number}"].tobytes().decode().split("\0"))

    def settings(self) -> dict[str, Any]:
        return {
            "groups": {group.name: [self._columns[number].name for number in group.columns] for group in self._groups},
            "numeric": [column.name for column in self._columns if column.numeric],
        }

    def _set_categories(self, number: int, categories: list[str]) -> None:
        """Ranks where each category gets a slot of its own; none means hashing."""
        self._ranks[number] = {c: rank for rank, c in enumerate(categories)} if len(categories) < self.dim else {}

    def _encode_column(self, number: int, cells: list[str], target: np.ndarray) -> None:
        """Fill `target` [n, D] with one column's cells."""
        column = self._columns[number]
        for row, cell in enumerate(cells):
            if column.numeric:
                value = None if is_missing(cell) else to_number(cell)
                if value is None:
                    target[row, 1] = 1.0
                else:
                    target[row, 0] = (value - self._mean[number]) / self._spread[number]
            elif is_missing(cell):
                target[row, -1] = 1.0
            elif not self._ranks[number]:
                target[row, zlib.crc32(cell.encode()) % (self.dim - 1)] = 1.0
            elif cell in self._ranks[number]:
                target[row, self._ranks[number][cell]] = 1.0


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
    """Sizes from the groups and the columns, or as configured. Raises `ConfigError` where those are too small."""
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
