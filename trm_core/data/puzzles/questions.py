"""One puzzle as people write it -> tokens: a line of Sudoku digits, a drawn maze, a grid of ARC colours.

S: tokens per puzzle. Whatever is wrong is a DataError that names the place and what was expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trm_core.data.build.arc import parse_grid
from trm_core.data.puzzles.arc_tokens import lay
from trm_core.data.puzzles.meaning import Meaning
from trm_core.errors import DataError

_SHOWN = 40  # characters of a text in a message


@dataclass(frozen=True)
class Question:
    """tokens: int64 [S]; labels: int64 [S] where the answer is known; puzzle: the number or name of its identifier, if
    it was asked with one; task: the name of the ARC task that it belongs to, where its file says so.
    """

    tokens: np.ndarray
    labels: np.ndarray | None = None
    puzzle: int | str | None = None
    task: str | None = None


def question_of(value: Any, meaning: Meaning, where: str, task: str | None = None) -> Question:
    """A text (Sudoku, maze: a line or rows); a list or array of S tokens; rows of tokens, of colours for ARC, or of
    digits for Sudokus (0: empty); or an object {"input": one of these, "output": the answer, "puzzle": identifier}.
    """
    if not isinstance(value, dict):
        return Question(_tokens(value, meaning, where), task=task)
    unknown = set(value) - {"input", "output", "puzzle"}
    if unknown or "input" not in value:
        what = f"unknown field {min(unknown)[:_SHOWN]!r}" if unknown else "no field 'input'"
        raise DataError(f"{where}: {what}", hint='a puzzle is {"input": ...}, with "output" and "puzzle" if you like')
    output, puzzle = value.get("output"), value.get("puzzle")
    puzzle = puzzle.item() if isinstance(puzzle, np.generic) else puzzle
    if puzzle is not None and not isinstance(puzzle, str) and (type(puzzle) is not int or puzzle < 0):
        raise DataError(f"{where}: puzzle is {str(puzzle)[:_SHOWN]!r}, expected the number or name of its identifier")
    return Question(
        _tokens(value["input"], meaning, where),
        None if output is None else _tokens(output, meaning, f"{where}, output"),
        puzzle,
        task,
    )


def text_tokens(text: str, meaning: Meaning, where: str) -> np.ndarray:
    """int64 [S] from S characters, ignoring line breaks; in Sudokus 0 and . both stand for an empty cell. Puzzles of
    other kinds: S numbers with spaces or commas between them, or characters where `in_characters`.
    """
    if meaning.kind == "arc":
        raise DataError(f"{where}: a text, expected a grid of colours", hint='[[0, 1], [2, 0]] or {"input": [[...]]}')
    if meaning.kind == "tokens":
        words = text.replace(",", " ").split()
        if not in_characters(words, meaning):
            return _numbers(words, meaning, where)
        text = "".join(words)
    cells = text.replace("\r", "").replace("\n", "")
    if meaning.kind == "sudoku":
        cells = cells.replace("0", ".").replace(" ", "")
    if len(cells) != meaning.cells:
        raise DataError(f"{where}: {len(cells)} characters, expected {meaning.cells}", hint=expected(meaning))
    try:
        return np.array([meaning.tokens[cell] for cell in cells], dtype=np.int64)
    except KeyError as error:
        raise DataError(f"{where}: the character {error.args[0]!r}", hint=expected(meaning)) from None


def in_characters(words: Sequence[str], meaning: Meaning) -> bool:
    """Whether the words of a line are to be read as characters for cells: S numbers are tokens in any case."""
    return meaning.by_symbols and not (len(words) == meaning.cells and all(word.isdecimal() for word in words))


def expected(meaning: Meaning) -> str:
    """What a puzzle looks like."""
    size = f"{meaning.height} x {meaning.width}"
    return {
        "sudoku": f"a Sudoku of {size} is a line of digits 1 to {meaning.width}, with . or 0 for empty cells",
        "maze": f"a maze of {size} is drawn with # (wall), space (free), S and G, in {meaning.height} lines or in one",
        "arc": f"a grid is a list of at most {meaning.height} rows of colours 0 to 9",
        "tokens": f"{meaning.cells} numbers from 0 to {len(meaning.symbols) - 1}"
        + (f", or {meaning.cells} characters out of {''.join(meaning.symbols[1:])}" if meaning.by_symbols else ""),
    }[meaning.kind]


def _tokens(value: Any, meaning: Meaning, where: str) -> np.ndarray:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        value = [cell.tolist() if isinstance(cell, np.ndarray | np.generic) else cell for cell in value]
    if isinstance(value, str):
        return text_tokens(value, meaning, where)
    rows = isinstance(value, list) and bool(value) and isinstance(value[0], list)
    if meaning.kind == "arc" and rows:
        return lay(parse_grid(value, where)).astype(np.int64).ravel()
    if rows:
        flat = [cell for row in value for cell in (row if isinstance(row, list) else [row])]
        if meaning.kind == "sudoku":
            return _digits(flat, meaning, where)
        return _numbers(flat, meaning, where)
    if isinstance(value, list):
        return _numbers(value, meaning, where)
    raise DataError(f"{where}: {str(value)[:_SHOWN]!r} is not a puzzle", hint=expected(meaning))


def _digits(cells: list[Any], meaning: Meaning, where: str) -> np.ndarray:
    """Tokens of a Sudoku written as rows of digits, 0 for an empty cell."""
    if len(cells) != meaning.cells:
        raise DataError(f"{where}: {len(cells)} digits, expected {meaning.cells}", hint=expected(meaning))
    for place, cell in enumerate(cells):
        if type(cell) is not int or not 0 <= cell <= meaning.width:
            raise DataError(
                f"{where}, position {place}: {str(cell)[:_SHOWN]!r} is not a digit: rows hold 0 (empty) to "
                f"{meaning.width}",
                hint="tokens are given as one list",
            )
    return np.array([meaning.tokens[str(cell) if cell else "."] for cell in cells], dtype=np.int64)


def _numbers(cells: list[Any], meaning: Meaning, where: str) -> np.ndarray:
    if len(cells) != meaning.cells:
        raise DataError(f"{where}: {len(cells)} tokens, expected {meaning.cells}", hint=expected(meaning))
    most = len(meaning.symbols) - 1
    found = np.empty(len(cells), dtype=np.int64)
    for place, cell in enumerate(cells):
        if isinstance(cell, str) and cell.isdecimal() and len(cell) < 10:
            cell = int(cell)
        if type(cell) is not int or not 0 <= cell <= most:
            raise DataError(f"{where}, position {place}: {str(cell)[:_SHOWN]!r} is not a token: tokens are 0 to {most}")
        found[place] = cell
    return found
