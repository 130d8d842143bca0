"""ARC grids as token sequences, in the encoding of the public TRM and HRM code.

A sequence is a square of 30 x 30 cells, row by row: 0 outside, 1 an end marker (the row below the grid and the column
right of it, where there is room), colour c as c + 2.
"""

from __future__ import annotations

import numpy as np

from trm_core.data.build.arc import COLOURS, MAX_SIDE

PAD, END, FIRST_COLOUR = 0, 1, 2
VOCABULARY = FIRST_COLOUR + COLOURS
SEQUENCE = MAX_SIDE * MAX_SIDE
SYMBOLS = ["<pad>", "<end>", *(str(colour) for colour in range(COLOURS))]


def lay(grid: np.ndarray, row: int = 0, column: int = 0) -> np.ndarray:
    """uint8 [30, 30] with the grid [h, w] of colours laid with its top-left corner at (row, column)."""
    height, width = grid.shape
    square = np.zeros((MAX_SIDE, MAX_SIDE), dtype=np.uint8)
    bottom, right = row + height, column + width
    assert bottom <= MAX_SIDE, (row, height)
    assert right <= MAX_SIDE, (column, width)
    square[row:bottom, column:right] = grid + FIRST_COLOUR
    square[bottom : bottom + 1, column:right] = END
    square[row:bottom, right : right + 1] = END
    return square


def extents(tokens: np.ndarray) -> np.ndarray:
    """int64 [B, 2]: (height, width) of the largest rectangle of colours at the top-left corner of tokens [B, 900].

    Of equally large ones the lowest; (0, 0) where the corner itself holds no colour.
    """
    squares = tokens.reshape(-1, MAX_SIDE, MAX_SIDE)
    other = (squares < FIRST_COLOUR) | (squares >= VOCABULARY)
    runs = np.where(other.any(axis=2), other.argmax(axis=2), MAX_SIDE)
    widths = np.minimum.accumulate(runs, axis=1)  # [B, 30]: the widest rectangle of height i + 1
    heights = (widths * np.arange(1, MAX_SIDE + 1)).argmax(axis=1)
    width = np.take_along_axis(widths, heights[:, None], axis=1)[:, 0]
    return np.stack([np.where(width > 0, heights + 1, 0), width], axis=1)


def crops(tokens: np.ndarray) -> list[np.ndarray | None]:
    """The grids, uint8 [h, w] of colours, at the top-left corners of tokens [B, 900]; None where there is none."""
    squares = tokens.reshape(-1, MAX_SIDE, MAX_SIDE)
    return [
        (square[:height, :width] - FIRST_COLOUR).astype(np.uint8) if height else None
        for square, (height, width) in zip(squares, extents(tokens).tolist(), strict=True)
    ]
