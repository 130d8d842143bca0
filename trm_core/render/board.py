"""The cells of a puzzle as they should look after a step, independent of what draws them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trm_core.data.puzzles.build.sudoku.geometry import GEOMETRIES
from trm_core.data.puzzles.layout import Manifest
from trm_core.render.thinking import PuzzleThinking

# The ten colours of ARC's own web pages.
ARC_COLOURS = (
    "#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25",
)  # fmt: skip
_MAZE_COLOURS = {"#": "#3a3a3a", " ": "#ffffff", "S": "#2ecc40", "G": "#ff4136", "o": "#4a90d9"}
_END = "<end>"


@dataclass(frozen=True)
class Cell:
    """One cell. text: at most two characters; fill: colour as #rrggbb, or None for the background.

    given: fixed by the question; changed: has another token than before; contradicts: differs from what was given.
    """

    text: str
    fill: str | None
    given: bool
    changed: bool
    contradicts: bool
    confidence: float


Window = tuple[int, int]  # how many rows and columns to show, from the first


def window_of(thinking: PuzzleThinking) -> Window:
    """The whole puzzle; for ARC, only the part of its 30 x 30 square that the question or an answer uses, without end
    markers.
    """
    manifest = thinking.manifest
    if manifest.kind != "arc":
        return manifest.height, manifest.width
    tokens = np.stack([thinking.inputs, *(step.predicted for step in thinking.steps)])
    used = (tokens > _highest_marker(manifest)).any(axis=0).reshape(manifest.height, manifest.width)
    rows, columns = np.flatnonzero(used.any(axis=1)), np.flatnonzero(used.any(axis=0))
    return int(rows.max(initial=0)) + 1, int(columns.max(initial=0)) + 1


def question(thinking: PuzzleThinking, window: Window) -> list[list[Cell]]:
    """Rows of cells of the question."""
    given = _given(thinking)
    return _cells(
        thinking, window, thinking.inputs, given, np.zeros_like(given), np.zeros_like(given), np.ones(given.shape)
    )


def answer(thinking: PuzzleThinking, number: int, window: Window) -> list[list[Cell]]:
    """Rows of cells of the answer after step `number` (from 0). Changes are relative to the step before; in the first
    step to the question, if that is an unfinished answer (Sudoku, mazes)."""
    step = thinking.steps[number]
    given = _given(thinking)
    if number:
        changed = step.predicted != thinking.steps[number - 1].predicted
    elif thinking.manifest.kind in ("sudoku", "maze"):
        changed = step.predicted != thinking.inputs
    else:
        changed = np.zeros_like(given)
    contradicts = given & (step.predicted != thinking.inputs)
    return _cells(thinking, window, step.predicted, given, changed, contradicts, step.confidence)


def box_shape(manifest: Manifest) -> tuple[int, int] | None:
    """Rows and columns of a Sudoku's boxes; None for other puzzles."""
    geometry = GEOMETRIES.get(manifest.width) if manifest.kind == "sudoku" else None
    return None if geometry is None else (geometry.box_rows, geometry.box_columns)


def contrast(fill: str) -> str:
    """Black or white, whichever is legible on a colour #rrggbb."""
    red, green, blue = (int(fill[at : at + 2], 16) for at in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"


def _given(thinking: PuzzleThinking) -> np.ndarray:
    """bool [S]: cells that an answer must not change."""
    symbols = thinking.manifest.symbols
    fixed = {"sudoku": lambda s: s.isdigit(), "maze": lambda s: s in "#SG"}.get(thinking.manifest.kind)
    if fixed is None:
        return np.zeros(thinking.inputs.shape, dtype=bool)
    tokens = [token for token, symbol in enumerate(symbols) if fixed(symbol)]
    return np.isin(thinking.inputs, tokens)


def _cells(
    thinking: PuzzleThinking,
    window: Window,
    tokens: np.ndarray,
    given: np.ndarray,
    changed: np.ndarray,
    contradicts: np.ndarray,
    confidence: np.ndarray,
) -> list[list[Cell]]:
    manifest = thinking.manifest
    return [
        [
            Cell(
                _text(manifest, int(tokens[at])),
                _fill(manifest, int(tokens[at])),
                bool(given[at]),
                bool(changed[at]),
                bool(contradicts[at]),
                float(confidence[at]),
            )
            for at in range(row * manifest.width, row * manifest.width + window[1])
        ]
        for row in range(window[0])
    ]


def _symbol(manifest: Manifest, token: int) -> str:
    return manifest.symbols[token] if 0 <= token < len(manifest.symbols) else "?"


def _text(manifest: Manifest, token: int) -> str:
    symbol = _symbol(manifest, token)
    if token == 0 or symbol == _END:
        return " "
    return symbol[:2] if symbol.isprintable() else "?"


def _fill(manifest: Manifest, token: int) -> str | None:
    symbol = _symbol(manifest, token)
    if manifest.kind == "arc" and symbol.isdigit() and int(symbol) < len(ARC_COLOURS):
        return ARC_COLOURS[int(symbol)]
    return _MAZE_COLOURS.get(symbol) if manifest.kind == "maze" else None


def _highest_marker(manifest: Manifest) -> int:
    return manifest.symbols.index(_END) if _END in manifest.symbols else 0
