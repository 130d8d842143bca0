"""Rows of puzzle files: csv with a column of questions, or plain lines of a question, optionally with its answer."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trm_core.errors import DataError

# Column names in the public collections, ours first.
_QUESTION = ("question", "puzzle", "puzzles", "quiz", "quizzes")
_ANSWER = ("answer", "solution", "solutions")
_RATING = ("rating", "difficulty")


@dataclass(frozen=True)
class Row:
    """One puzzle as text; `answer` is empty and `rating` nan where the file has none."""

    line: int
    question: str
    answer: str
    rating: float


@dataclass(frozen=True)
class Format:
    """How a file is read, and why."""

    header: list[str] | None
    reason: str


def detect(path: Path, *, lines: bool) -> Format:
    """Whether `path` is a csv file with a known header or, where `lines` allows it, holds plain lines."""
    with _opened(path) as file:
        first = _first_line(path, file)
    header = [name.strip().lower() for name in next(csv.reader([first]), [])]
    if any(name in header for name in _QUESTION):
        return Format(header, f"csv (a header with {', '.join(header)})")
    if not lines or re.fullmatch(r"[A-Za-z_ ]+(,[A-Za-z_ ]+)*", first):
        raise DataError(
            f"{path}, line 1: no column of questions among {first[:80]!r}",
            hint="the header of a csv file is source,question,answer,rating; question alone is enough",
        )
    return Format(None, "lines (no header: one puzzle a line)")


def read_rows(path: Path, form: Format) -> Iterator[Row]:
    """The puzzles of a file in order. Raises DataError with the line for anything else."""
    with _opened(path) as file:
        try:
            yield from _csv_rows(path, csv.reader(file), form.header) if form.header else _line_rows(path, file)
        except csv.Error as error:
            raise DataError(f"{path}: damaged csv: {error}", hint="save it again as csv in UTF-8") from None
        except UnicodeDecodeError:
            raise DataError(f"{path}: not a text file in UTF-8", hint="save it again as UTF-8") from None


def _csv_rows(path: Path, reader: Any, header: list[str]) -> Iterator[Row]:
    next(reader)
    question, answer, rating = (
        next((header.index(name) for name in names if name in header), None) for names in (_QUESTION, _ANSWER, _RATING)
    )
    assert question is not None  # `detect` saw it
    for cells in reader:
        number = reader.line_num
        if not cells:
            continue
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {number}: {len(cells)} columns, the header has {len(header)}",
                hint="fix the line: no column may be missing, and commas within one need quotes",
            )
        value = float("nan")
        if rating is not None and cells[rating].strip():
            try:
                value = float(cells[rating])
            except ValueError:
                raise DataError(
                    f"{path}, line {number}: the rating {cells[rating]!r} is not a number", hint="fix the line"
                ) from None
        yield Row(number, cells[question], cells[answer] if answer is not None else "", value)


def _line_rows(path: Path, file: Iterator[str]) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        cells = [cell for cell in re.split(r"[\s,;]+", line) if cell]
        if not cells:
            continue
        if len(cells) > 2:
            raise DataError(
                f"{path}, line {number}: {len(cells)} words; a puzzle and, at most, its solution were expected",
                hint="a line is a puzzle without spaces, optionally followed by a space or comma and its solution",
            )
        yield Row(number, cells[0], cells[1] if len(cells) == 2 else "", float("nan"))


def _opened(path: Path) -> IO[str]:
    try:
        return open(path, encoding="utf-8-sig", newline="")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", hint="name a file of puzzles") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder where a file was expected", hint="name a file of puzzles") from None


def _first_line(path: Path, file: Iterator[str]) -> str:
    try:
        return next(file, "").rstrip("\r\n")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file in UTF-8", hint="save it again as UTF-8") from None
