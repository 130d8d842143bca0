"""Answers to all samples of a source as JSON lines, in constant memory, and resumable.

While it is under way the lines are in `<out>.part`, beside `<out>.part.json`, which says of what they are answers. A
call that was stopped goes on after its last whole line; at the end the file gets its name.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm_core.data.build.array_files import open_arrays
from trm_core.data.store import CapsuleFile, open_capsules
from trm_core.errors import DataError, UsageError
from trm_core.evaluation.policies import Policy
from trm_core.inference.predictor import Predictor
from trm_core.inference.samples import Sample, expected_shapes, samples_of
from trm_core.inference.trained import Trained

_BLOCK = 256  # rows that are read at once
_FLUSH = 64  # answers after which what was written is handed to the system


@dataclass(frozen=True)
class Settings:
    """How to answer."""

    policy: str | None = None
    price: float | None = None
    confidence: float = 0.95
    batch: int = 64
    probabilities: bool = False
    decisions: bool = False


@dataclass(frozen=True)
class Source:
    """Where samples come from. `start(row)` gives them from that row on; `labels(rows)` what is known of them."""

    path: Path
    rows: int
    start: Callable[[int], Iterator[Sample]]
    identity: dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """What was written; means over the rows answered by this call."""

    path: Path
    rows: int
    resumed_at: int
    steps: float
    opened: float
    spent: float


def open_source(
    path: Path, predictor: Predictor, split: str | None, kind: str | None = None, column: str | None = None
) -> Source:
    """A capsule file (of one `split`), an npz of arrays by name, or raw samples: jsonl (one in each line; a text, a row
    of a table, a pair of grids), csv or tsv with a header (rows of a table, or the texts of `column`). Raises DataError
    or UsageError.
    """
    suffix = path.suffix.lower()
    if suffix in (".npz", ".jsonl", ".csv", ".tsv"):
        if split is not None:
            raise UsageError(f"{path} has no splits", hint="leave --split out")
        return _arrays(path, predictor.trained) if suffix == ".npz" else _raw(path, predictor, kind, column)
    return _capsules(path, predictor.trained, split)


def score(
    predictor: Predictor,
    source: Source,
    out: Path,
    settings: Settings,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
    check: Callable[[], None] = lambda: None,
) -> Scored:
    """Write `out`, which must not exist. check: raises to stop; what was written stays. Raises DataError for a sample
    that cannot be answered, UsageError for an output that belongs to another call.
    """
    if out.exists():
        raise UsageError(f"{out} exists already", hint="name another --out, or remove it first")
    policy = predictor.policy(settings.policy, settings.price, settings.confidence)
    part, note = out.with_name(out.name + ".part"), out.with_name(out.name + ".part.json")
    done = _go_on(part, note, source, _identity(predictor.trained, source, settings))
    try:
        sums, answered = _answer_rest(predictor, policy, source, done, part, settings, on_rows, check)
    finally:
        if part.stat().st_size == 0:  # nothing to go on from
            part.unlink()
            note.unlink()
    on_rows(source.rows, source.rows)
    part.rename(out)
    note.unlink()
    steps, opened, spent = (sums / max(answered, 1)).tolist()
    return Scored(out, source.rows, done, steps, opened, spent)


def _answer_rest(
    predictor: Predictor,
    policy: Policy,
    source: Source,
    done: int,
    part: Path,
    settings: Settings,
    on_rows: Callable[[int, int], None],
    check: Callable[[], None],
) -> tuple[NDArray[np.float64], int]:
    """Append the lines from row `done` on; the sums of steps, opened and spent, and the number of rows."""
    sums, answered = np.zeros(3), 0
    with part.open("a", encoding="utf-8") as file:
        answers = predictor.stream(source.start(done), policy, settings.batch)
        for row, answer in enumerate(answers, start=done):
            record = {"row": row, **answer.as_record(settings.probabilities)}
            if not settings.decisions:
                del record["decisions"]
            file.write(json.dumps(record) + "\n")
            sums += (answer.steps, len(answer.opened), answer.spent)
            answered += 1
            if answered % _FLUSH == 0:
                file.flush()
                on_rows(row + 1, source.rows)
                check()
        file.flush()
        os.fsync(file.fileno())
    return sums, answered


def _identity(trained: Trained, source: Source, settings: Settings) -> dict[str, Any]:
    """What all lines of a file have in common. Not `batch`, which changes no answer."""
    asked = {name: value for name, value in asdict(settings).items() if name != "batch"}
    return {"model": str(trained.source.resolve()), "step": trained.about.get("step"), **source.identity, **asked}


def _go_on(part: Path, note: Path, source: Source, identity: dict[str, Any]) -> int:
    """How many rows are answered already; the half of a line at the end is cut off."""
    if not part.exists():
        note.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")
        return 0
    try:
        before = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if before != identity:
        changed = [
            name for name, value in identity.items() if not isinstance(before, dict) or before.get(name) != value
        ]
        raise UsageError(
            f"{part} was begun with another {', '.join(changed)}", hint="name another --out, or remove that file"
        )
    done = 0
    with part.open("r+b") as file:
        end = 0
        for line in file:
            if not line.endswith(b"\n") or not _is_row(line, done):
                break
            done, end = done + 1, end + len(line)
        file.truncate(end)
    return min(done, source.rows)


def _is_row(line: bytes, row: int) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and record.get("row") == row


def _capsules(path: Path, trained: Trained, split: str | None) -> Source:
    file = open_capsules(path)
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


def _child(file: CapsuleFile, split: str, row: int, capsule: int) -> Any:
    return file.read(split, slice(row, row + 1), ["children"])["children"][0, capsule]


def _arrays(path: Path, trained: Trained) -> Source:
    arrays = open_arrays(path)
    expected = expected_shapes(trained.model.data)
    found = {name: array for name, array in arrays.items() if name in expected}
    if "sketches" not in found:
        raise DataError(f"{path} has no array sketches", hint=f"it has: {', '.join(arrays)}")
    counts = {name: array.shape[0] for name, array in found.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"{path}: arrays of different lengths: {counts}")

    def start(first: int) -> Iterator[Sample]:
        rows = zip(*(array.rows() for array in found.values()), strict=True)
        skipped = islice(rows, first, None)
        for number, values in enumerate(skipped, start=first):
            fields = {name: np.asarray(value)[None] for name, value in zip(found, values, strict=True)}
            yield from samples_of(fields, trained, number)

    return Source(path, counts["sketches"], start, _identity_of_file(path))


def _raw(path: Path, predictor: Predictor, kind: str | None, column: str | None) -> Source:
    def start(first: int) -> Iterator[Sample]:
        return predictor.encoded(islice(raw_lines(path, column), first, None), kind, first)

    rows = sum(1 for _ in raw_lines(path, column))
    if not rows:
        raise DataError(f"{path} holds no samples")
    return Source(path, rows, start, {**_identity_of_file(path), "kind": kind, "column": column})


def raw_lines(path: Path, column: str | None) -> Iterator[Any]:
    """The raw samples of a jsonl, csv or tsv file, one after the other. Raises DataError with file and line."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix.lower() == ".jsonl":
                yield from _json_lines(path, file, column)
            else:
                yield from _table_rows(path, file, column)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _json_lines(path: Path, file: Iterable[str], column: str | None) -> Iterator[Any]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: no JSON: {str(error)[:100]}") from None
            yield value if column is None else _cell_of(path, number, value, column)


def _table_rows(path: Path, file: Iterable[str], column: str | None) -> Iterator[Any]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    for number, row in enumerate(csv.DictReader(file, delimiter=delimiter), start=2):
        yield row if column is None else _cell_of(path, number, row, column)


def _cell_of(path: Path, number: int, row: Any, column: str) -> Any:
    if not isinstance(row, dict) or column not in row:
        there = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{path}:{number}: has no column {column!r}", hint=f"it has: {there[:200]}")
    return row[column]


def _identity_of_file(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"data": str(path.resolve()), "split": None, "content_hash": [stat.st_size, stat.st_mtime_ns]}
