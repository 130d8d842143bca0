"""Files of samples -> `Source`s: capsule files, arrays, raw samples, puzzles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from trm_core.data.build.array_files import open_arrays
from trm_core.data.build.delimited import open_delimited, text_lines
from trm_core.data.encoding import Encoding
from trm_core.data.store import CapsuleFile, open_capsules
from trm_core.errors import DataError, UsageError
from trm_core.inference.predictor import Predictor
from trm_core.inference.puzzle_source import puzzle_source
from trm_core.inference.samples import Sample, expected_shapes, samples_of
from trm_core.inference.source import Source, identity_of_file
from trm_core.inference.trained import Trained

_HDF5 = b"\x89HDF\r\n\x1a\n"
_BLOCK = 256  # rows that are read at once


def open_source(
    path: Path,
    predictor: Predictor,
    split: str | None,
    kind: str | None = None,
    column: str | None = None,
    stdin: str = "",
) -> Source:
    """A capsule file (of one `split`), an npz of arrays by name, or raw samples: jsonl (one in each line; a text, a row
    of a table, a pair of grids), csv or tsv with a header (rows of a table, or the texts of `column`). For a model of
    puzzles what `puzzle_source` reads. Raises DataError or UsageError.
    """
    if predictor.trained.puzzles is not None:
        return puzzle_source(path, predictor, split, stdin)
    suffix = path.suffix.lower()
    if suffix in (".npz", ".jsonl", ".csv", ".tsv"):
        if split is not None:
            raise UsageError(f"{path} has no splits", hint="leave --split out")
        return _arrays(path, predictor.trained) if suffix == ".npz" else _raw(path, predictor, kind, column)
    return _capsules(path, predictor.trained, split)


def _capsules(path: Path, trained: Trained, split: str | None) -> Source:
    if path.is_file() and _first_bytes(path) != _HDF5:
        raise DataError(
            f"{path} is neither a capsule file nor an .npz, .jsonl, .csv or .tsv",
            hint="put raw samples into a .jsonl (one text, row or pair of grids a line) or a .csv with a header",
        )
    file = open_capsules(path)
    found = None if trained.encoding is None else trained.encoding.contradiction(Encoding.of(file.manifest))
    if found is not None:
        raise DataError(f"{path} does not fit what the model was trained on: {found.why}", hint=found.hint)
    names = [name for name in expected_shapes(trained.model.data) if file.has(name)]
    split = split or next((name for name in ("test", "validation", "train") if file.rows.get(name)), "test")
    if not file.rows.get(split):
        raise UsageError(f"{path} has no split '{split}'", hint=f"it has: {', '.join(file.rows)}")
    # Children are read one opened capsule at a time: most are never looked at.
    at_once = [name for name in names if name != "children"]

    def start(first: int) -> Iterator[Sample]:
        for begin in range(first, file.rows[split], _BLOCK):
            fields: dict[str, Any] = dict(
                file.read(split, slice(begin, min(begin + _BLOCK, file.rows[split])), at_once)
            )
            if "children" in names:
                fields["children"] = lambda row, capsule: _child(file, split, row, capsule)
            yield from samples_of(fields, trained, begin)

    identity = {"data": str(path.resolve()), "split": split, "content_hash": file.manifest.get("content_hash")}
    return Source(path, file.rows[split], start, identity)


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(_HDF5))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _child(file: CapsuleFile, split: str, row: int, capsule: int) -> Any:
    return file.read(split, slice(row, row + 1), ["children"])["children"][0, capsule]


def _arrays(path: Path, trained: Trained) -> Source:
    arrays = open_arrays(path)
    expected = expected_shapes(trained.model.data)
    found = {name: array for name, array in arrays.items() if name in expected}
    if "sketches" not in found:
        raise DataError(
            f"{path} has no array sketches, only {', '.join(arrays)}",
            hint="where the builder made them of the children, build this file too: trm build-capsules",
        )
    counts = {name: array.shape[0] for name, array in found.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"{path}: arrays of different lengths: {counts}")
    if not counts["sketches"]:
        raise DataError(f"{path} holds no samples")

    def start(first: int) -> Iterator[Sample]:
        rows = zip(*(array.rows() for array in found.values()), strict=True)
        skipped = islice(rows, first, None)
        for number, values in enumerate(skipped, start=first):
            fields = {name: np.asarray(value)[None] for name, value in zip(found, values, strict=True)}
            yield from samples_of(fields, trained, number)

    return Source(path, counts["sketches"], start, identity_of_file(path))


def _raw(path: Path, predictor: Predictor, kind: str | None, column: str | None) -> Source:
    def start(first: int) -> Iterator[Sample]:
        return predictor.encoded(islice(raw_lines(path, column), first, None), kind, first, str(path))

    rows = sum(1 for _ in raw_lines(path, column))
    if not rows:
        raise DataError(f"{path} holds no samples")
    return Source(path, rows, start, {**identity_of_file(path), "kind": kind, "column": column})


def raw_lines(path: Path, column: str | None) -> Iterator[Any]:
    """The raw samples of a jsonl, csv or tsv file, one after the other. Raises DataError with file and line."""
    yield from _json_lines(path, column) if path.suffix.lower() == ".jsonl" else _table_rows(path, column)


def _json_lines(path: Path, column: str | None) -> Iterator[Any]:
    for number, line in text_lines(path):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: no JSON: {str(error)[:100]}") from None
            yield value if column is None else _cell_of(path, number, value, column)


def _table_rows(path: Path, column: str | None) -> Iterator[Any]:
    """As the builder reads them."""
    table = open_delimited(path)
    for number, values in table.rows():
        row = dict(zip(table.columns, values, strict=True))
        yield row if column is None else _cell_of(path, number, row, column)


def _cell_of(path: Path, number: int, row: Any, column: str) -> Any:
    if not isinstance(row, dict) or column not in row:
        there = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{path}:{number}: has no column {column!r}", hint=f"it has: {there[:200]}")
    return row[column]
