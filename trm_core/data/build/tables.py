"""Rows of a csv, tsv or jsonl table, and what its columns are.

Whether a column holds numbers or categories is determined once over the whole file (it is a matter of type, not of
statistics); means, spreads and categories are fitted on the training split by `encode_table`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trm_core.config.schema import BuildConfig
from trm_core.data.build.delimited import Delimited, open_delimited
from trm_core.data.build.records import Log, Record, class_text, digest_bytes, label_among
from trm_core.data.build.text import LABEL_NAMES
from trm_core.errors import DataError

MISSING = frozenset(
    {"", "na", "n/a", "nan", "-nan", "null", "none", "?", "<na>"}
    | {"#n/a", "#div/0!", "#value!", "#ref!", "#name?", "#num!", "#null!"}  # of spreadsheets
)
_NO_LABEL = MISSING - {"none"}  # "none" can be a class: none, mild, severe
_MAX_COUNTED = 256
_LARGEST = 1e100  # sums of squares of larger numbers may overflow a float
_EMPTY = "leave the cell empty where a value is missing"
# 1,234.5, 1.234,5, 12 % and $5 are numbers to people, but not to float().
_WRITTEN = re.compile(r"[-+(]?\s*[$€£¥]?\s*\d[\d.,'\s]*(?:[eE][-+]?\d+)?\s*[%$€£¥]?\)?")
_NEARLY_ALL = 0.8
_FEW_CELLS = 20  # categories of their own are chance
LABEL_COLUMNS = (*LABEL_NAMES, "y", "species", "outcome")


@dataclass(frozen=True)
class Column:
    """A feature column. `distinct`: different values seen, counted up to 256; 0 for numbers."""

    name: str
    numeric: bool
    distinct: int


class TableReader:
    """One table. The content of a record is the tuple of its feature cells, in the order of `columns`."""

    def __init__(self, path: str, config: BuildConfig, log: Log) -> None:
        self.path = path
        self._table: Delimited = open_delimited(Path(path)).of_all_lines()
        names = self._table.columns
        label = label_among(names, config.label, LABEL_COLUMNS)
        # A label column that is not the target is no feature either: new samples come without it.
        dropped = label_among(names, None, LABEL_COLUMNS) if label is None else None
        if dropped is not None:
            log(f"{path}: label column {dropped!r} ignored, as requested: concepts are the targets")
        elif label is None or config.label is None:
            log(f"{path}: " + (f"label column {label!r}" if label else "no label column: concepts are the targets"))
        self._label = None if label is None else self._table.column(label)
        self.has_labels = self._label is not None
        aside = self._label if dropped is None else self._table.column(dropped)
        self._indices = [index for index in range(len(names)) if index != aside]
        if not self._indices:
            raise DataError(f"{path}: has no columns besides the label")
        self.columns, self.categories = self._examine(log)

    def records(self, *, digests: bool) -> Iterator[Record]:
        for _, values in self._table.rows(self._indices if self._label is None else [*self._indices, self._label]):
            cells = tuple(values[index].strip() for index in self._indices)
            label = class_text(values[self._label]) if self._label is not None else ""
            if label.casefold() in _NO_LABEL:
                label = ""
            yield Record(cells, digest_bytes(*(cell.encode() for cell in cells)) if digests else 0, label or None)

    def _examine(self, log: Log) -> tuple[list[Column], list[set[str]]]:
        """The columns, and up to 256 different values of each categorical one. Logs columns that are nearly
        numeric, or have a category of their own in nearly every row.
        """
        seen: list[set[str]] = [set() for _ in self._indices]
        numeric = [True] * len(self._indices)
        odd = [""] * len(self._indices)
        filled = [0] * len(self._indices)  # cells that are not missing, as long as their values are counted
        for line, values in self._table.rows(self._indices):
            for position, index in enumerate(self._indices):
                cell = values[index].strip()
                if is_missing(cell):
                    continue
                if numeric[position]:
                    number = to_number(cell)
                    if number is None:
                        numeric[position] = False
                        odd[position] = f"line {line} holds {cell[:40]!r}"
                    elif abs(number) > _LARGEST:
                        what = "infinity" if math.isinf(number) else f"{cell}, which is too large"
                        raise DataError(
                            f"{self.path}:{line}: column {self._table.columns[index]!r} holds {what}", hint=_EMPTY
                        )
                if len(seen[position]) < _MAX_COUNTED:
                    filled[position] += 1
                    seen[position].add(cell)
        columns = [
            Column(self._table.columns[index], numeric[p] and filled[p] > 0, 0 if numeric[p] else len(seen[p]))
            for p, index in enumerate(self._indices)
        ]
        for column, cells, count, first in zip(columns, seen, filled, odd, strict=True):
            named = f"{self.path}: column {column.name!r}"
            if first and sum(map(_reads_as_number, cells)) >= _NEARLY_ALL * len(cells):
                log(f"{named} is read as categories, not as numbers: {first}; write numbers as 1234.5, and {_EMPTY}")
            elif not column.numeric and count >= _FEW_CELLS and len(cells) >= _NEARLY_ALL * count:
                log(
                    f"{named} has a category of its own in nearly every row, such as {min(cells)[:40]!r}, which tells "
                    "little: remove it, or write it as a number or as few categories"
                )
        return columns, [set() if column.numeric else values for column, values in zip(columns, seen, strict=True)]


def united_columns(readers: Sequence[TableReader]) -> list[Column]:
    """The columns of several tables, united. Raises `DataError` where they are not the same."""
    first = readers[0]
    for reader in readers[1:]:
        if [column.name for column in reader.columns] != [column.name for column in first.columns]:
            raise DataError(f"{reader.path}: its columns are not those of {first.path}", hint="build them separately")
    return [_united(readers, place) for place in range(len(first.columns))]


def _united(readers: Sequence[TableReader], place: int) -> Column:
    # A table with no value in this column says nothing about its type.
    filled = [r for r in readers if r.columns[place].numeric or r.categories[place]] or readers[:1]
    column = filled[0].columns[place]
    for reader in filled[1:]:
        if reader.columns[place].numeric != column.numeric:
            what = ["holds numbers" if one.columns[place].numeric else "holds text" for one in (reader, filled[0])]
            raise DataError(
                f"{reader.path}: column {column.name!r} {what[0]} here, and {what[1]} in {filled[0].path}",
                hint="bring both to one type, or build them separately",
            )
    distinct = len(set().union(*(reader.categories[place] for reader in filled)))
    return Column(column.name, column.numeric, 0 if column.numeric else min(distinct, _MAX_COUNTED))


def _reads_as_number(cell: str) -> bool:
    return to_number(cell) is not None or _WRITTEN.fullmatch(cell) is not None


def is_missing(cell: str) -> bool:
    return cell.casefold() in MISSING


def to_number(cell: str) -> float | None:
    """The cell as a float, or None if it is not a number (1_000 is one only to Python)."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None
