"""Puzzles of one example each, as arrays, with the place where each was read, so that errors can name the line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from trm_core.data.puzzles.build.rows import Row, detect, read_rows
from trm_core.errors import DataError

_CHUNK = 20_000
_BAD = 255


@dataclass(frozen=True)
class Alphabet:
    """What characters mean.

    `side` gives the side of a grid from its number of cells (None if no grid has that many), and `codes` the code of
    each character in a grid of that side. `expected` says in words which numbers of cells there may be, `characters`
    which characters; `lines`: whether a file may hold a puzzle per line, without csv.
    """

    codes: Callable[[int], dict[str, int]]
    side: Callable[[int], int | None]
    expected: str
    characters: str
    lines: bool

    def table(self, side: int) -> np.ndarray:
        """[256]: the code of each character."""
        found = np.full(256, _BAD, dtype=np.uint8)
        for character, code in self.codes(side).items():
            found[ord(character)] = code
        return found


@dataclass(frozen=True)
class Items:
    """M puzzles of `side` x `side` = S cells."""

    side: int
    questions: np.ndarray  # [M, S] uint8
    answers: np.ndarray  # [M, S] uint8; zeros where none was given
    ratings: np.ndarray  # [M] float; nan where none was given
    lines: np.ndarray  # [M] int64: line number
    files: np.ndarray  # [M] int64: index into `paths`
    paths: tuple[Path, ...]  # empty if they were generated

    def __len__(self) -> int:
        return len(self.questions)

    def take(self, chosen: np.ndarray) -> Items:
        """The puzzles `chosen`: indices, or a mask."""
        return _map([self], lambda arrays: arrays[0][chosen])

    def place(self, index: int) -> str:
        """Where puzzle `index` was read."""
        if not self.paths:
            return f"generated puzzle {self.lines[index]}"
        return f"{self.paths[self.files[index]]}, line {self.lines[index]}"


def generated_items(side: int, questions: np.ndarray, answers: np.ndarray) -> Items:
    """Items that come from no file."""
    count = len(questions)
    zeros = np.zeros(count, dtype=np.int64)
    return Items(side, questions, answers, np.full(count, np.nan), np.arange(count), zeros, ())


def read_items(paths: Sequence[Path], alphabet: Alphabet, log: Callable[[str], None]) -> Items:
    """All puzzles of some files; logs how each file is read."""
    parts: list[Items] = []
    for number, path in enumerate(paths):
        form = detect(path, lines=alphabet.lines)
        rows = read_rows(path, form)
        part: list[Items] = []
        while chunk := list(islice(rows, _CHUNK)):
            side = (part or parts)[0].side if part or parts else None
            part.append(_encode(path, number, chunk, side, alphabet, tuple(paths)))
        if not part:
            raise DataError(f"{path}: no puzzles in it", hint="name a file with a puzzle on each line")
        log(f"{path}: {form.reason}, {sum(map(len, part))} puzzles of {part[0].side} x {part[0].side}")
        parts += part
    return _map(parts, np.concatenate)


def _map(parts: Sequence[Items], change: Callable[[list[np.ndarray]], np.ndarray]) -> Items:
    """Items whose arrays are made from those of `parts`, field by field."""
    fields = [[part.questions, part.answers, part.ratings, part.lines, part.files] for part in parts]
    questions, answers, ratings, lines, files = (change(list(arrays)) for arrays in zip(*fields, strict=True))
    return Items(parts[0].side, questions, answers, ratings, lines, files, parts[0].paths)


def _encode(
    path: Path, number: int, rows: list[Row], side: int | None, alphabet: Alphabet, paths: tuple[Path, ...]
) -> Items:
    side = side or alphabet.side(len(rows[0].question))
    if side is None:
        raise DataError(
            f"{path}, line {rows[0].line}: a puzzle of {len(rows[0].question)} characters",
            hint=f"there must be {alphabet.expected}",
        )
    questions = _codes(path, rows, [row.question for row in rows], side, "puzzle", alphabet)
    answers = np.zeros_like(questions)
    given = [i for i, row in enumerate(rows) if row.answer]
    if given:
        solved = [rows[i] for i in given]
        answers[given] = _codes(path, solved, [row.answer for row in solved], side, "solution", alphabet)
    lines = np.array([row.line for row in rows], dtype=np.int64)
    ratings = np.array([row.rating for row in rows])
    return Items(side, questions, answers, ratings, lines, np.full(len(rows), number), paths)


def _codes(
    path: Path, rows: Sequence[Row], texts: Sequence[str], side: int, what: str, alphabet: Alphabet
) -> np.ndarray:
    cells = side * side
    for row, text in zip(rows, texts, strict=True):
        if len(text) != cells:
            raise DataError(
                f"{path}, line {row.line}: a {what} of {len(text)} characters where the first puzzle has {cells}",
                hint=f"all puzzles of a data set have one size, {alphabet.expected}",
            )
    raw = np.frombuffer("".join(texts).encode("latin-1", "replace"), dtype=np.uint8).reshape(len(texts), cells)
    codes = alphabet.table(side)[raw]
    bad = np.argwhere(codes == _BAD)
    if len(bad):
        row, cell = bad[0]
        raise DataError(
            f"{path}, line {rows[row].line}: the character {texts[row][cell]!r} in a {what}",
            hint=f"a puzzle is made of {alphabet.characters}",
        )
    return codes


def refuse(items: Items, reasons: Iterable[tuple[int, str]], hint: str) -> None:
    """Raise DataError for the first of `reasons`, (index, what is wrong with it), if there are any."""
    found = list(reasons)
    if found:
        index, reason = found[0]
        more = f" (and {len(found) - 1} more puzzles cannot be used)" if len(found) > 1 else ""
        raise DataError(f"{items.place(index)}: {reason}{more}", hint=hint)
