"""What the tokens of a puzzle model mean, in short: a run records it, so that the data folder is not needed later.

S tokens per puzzle: height x width, row by row.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, get_args

from trm_core.data.puzzles.arc_tokens import SEQUENCE, SYMBOLS, VOCABULARY
from trm_core.data.puzzles.build.maze.grid import SYMBOLS as MAZE_SYMBOLS
from trm_core.data.puzzles.layout import Manifest
from trm_core.data.puzzles.reader import PuzzleData

KINDS = get_args(Manifest.model_fields["kind"].annotation)
_SUDOKU_VOCABULARY, _SUDOKU_CELLS = 11, 81


@dataclass(frozen=True)
class Meaning:
    """symbols: what each token is shown as, the padding first; blank: the identifier of puzzles that have none of their
    own.
    """

    kind: str  # one of KINDS
    height: int
    width: int
    symbols: list[str]
    blank: int = 0

    @property
    def cells(self) -> int:
        """S"""
        return self.height * self.width

    @cached_property
    def tokens(self) -> dict[str, int]:
        """The token of each symbol; the padding, which nobody writes, is left out."""
        return {symbol: token for token, symbol in enumerate(self.symbols) if token}

    @property
    def by_symbols(self) -> bool:
        """Whether people write these puzzles as S characters: always for Sudokus and mazes; of other kinds, where the
        folder names a character of its own for each token. The rest are written as numbers.
        """
        if self.kind != "tokens":
            return self.kind != "arc"
        shown = self.symbols[1:]
        characters = all(len(symbol) == 1 and symbol not in " ,;" and symbol.isprintable() for symbol in shown)
        return (
            characters and len(set(shown)) == len(shown) and shown != [str(token) for token in range(1, len(shown) + 1)]
        )

    @property
    def manifest(self) -> Manifest:
        """The same as the manifest of a folder."""
        # Not validated: the schema refuses rows of more than 1000 numbers.
        names = ("kind", "height", "width", "symbols")
        return Manifest.model_construct(**{name: getattr(self, name) for name in names})

    def as_record(self) -> dict[str, Any]:
        """For JSON; `meaning_of_record` reads it."""
        return asdict(self)


def meaning_of(data: PuzzleData) -> Meaning:
    """From the folder's manifest or, in a folder of another builder, from the sizes."""
    found = data.about
    if found is None:
        return guessed(data.num_classes or 0, data.num_capsules, data.blank_identifier_id)
    return Meaning(found.kind, found.height, found.width, list(found.symbols), data.blank_identifier_id)


def meaning_of_record(record: Any, vocab_size: int, cells: int) -> Meaning:
    """The meaning that `as_record` wrote for a model with these sizes. Raises ValueError if they do not agree."""
    try:
        found = Meaning(**record)
    except TypeError as error:
        raise ValueError(f"puzzles: {error}") from None
    sizes = (found.height, found.width, found.blank)
    if found.kind not in KINDS or not all(type(size) is int and 0 <= size < 2**31 for size in sizes):
        raise ValueError("puzzles: kind or sizes make no sense")
    texts = isinstance(found.symbols, list) and all(isinstance(symbol, str) for symbol in found.symbols)
    if found.cells != cells or not texts or len(found.symbols) != vocab_size:
        raise ValueError(f"puzzles: not {cells} cells of {vocab_size} symbols")
    return found


def guessed(vocab_size: int, cells: int, blank: int = 0) -> Meaning:
    """What the public builders mean by these sizes; rows of plain numbers if none of them writes such sizes."""
    side = math.isqrt(cells)
    square = side * side == cells
    if (vocab_size, cells) == (_SUDOKU_VOCABULARY, _SUDOKU_CELLS):
        return Meaning("sudoku", side, side, ["<pad>", ".", *map(str, range(1, side + 1))], blank)
    if square and vocab_size == len(MAZE_SYMBOLS):
        return Meaning("maze", side, side, list(MAZE_SYMBOLS), blank)
    if (vocab_size, cells) == (VOCABULARY, SEQUENCE):
        return Meaning("arc", side, side, list(SYMBOLS), blank)
    height, width = (side, side) if square else (1, cells)
    return Meaning("tokens", height, width, [str(token) for token in range(vocab_size)], blank)
