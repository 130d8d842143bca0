"""Draw one frame of solving a puzzle: the question (unless the answer shows it), the answer, and the course so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trm_core.render.board import Cell, answer, box_shape, contrast, question, window_of
from trm_core.render.course import Curve, draw_course
from trm_core.render.thinking import PuzzleThinking

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CHANGED = "#ffb000"
_WRONG = "#d00000"
_ANSWERED = "#1f5fa8"
_UNSURE = 0.5
_BOARD = 4.2  # inches, the longer side
_COURSE = 1.1


class PuzzleDrawing:
    """Frames of one thinking."""

    notes: Sequence[str] = ()

    def __init__(self, thinking: PuzzleThinking) -> None:
        self._thinking = thinking
        self._window = window_of(thinking)
        self._boxes = box_shape(thinking.manifest)
        self._answers = [answer(thinking, number, self._window) for number in range(len(thinking.steps))]
        sure = [float(np.mean([cell.confidence for row in cells for cell in row])) for cells in self._answers]
        self._curves = [
            Curve("halt", [step.halt for step in thinking.steps], "#c0392b"),
            Curve("mean confidence", sure, "#1f5fa8"),
        ]
        # Sudokus and mazes show their question in every answer.
        self._with_question = self._boxes is None and thinking.manifest.kind != "maze"

    @property
    def size(self) -> tuple[float, float]:
        height, width = self._window
        scale = _BOARD / max(height, width)
        boards = 2 if self._with_question else 1
        return max(boards * scale * width + 0.4, 4.6), max(scale * height, 1.0) + 0.8 + _COURSE

    def draw(self, figure: Figure, number: int, *, final: bool) -> None:
        step = self._thinking.steps[number]
        count = len(self._thinking.steps)
        title = f"answer after {count} step{'s' * (count > 1)}" if final else f"step {number + 1} of {count}"
        figure.suptitle(f"{title}, halt probability {step.halt:.0%}", fontsize=11)
        board_height = self.size[1] - _COURSE - 0.4
        parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[board_height, _COURSE])[:, 0]
        panels = parts[0].subplots(1, 2 if self._with_question else 1, squeeze=False)[0]
        if self._with_question:
            panels[0].set_title("question", fontsize=9)
            panels[1].set_title("answer", fontsize=9)
            self._board(panels[0], question(self._thinking, self._window), marks=False)
        self._board(panels[-1], self._answers[number], marks=not final)
        draw_course(parts[1], self._curves, number)

    def _board(self, axes: Axes, cells: list[list[Cell]], *, marks: bool) -> None:
        from matplotlib.colors import to_rgb

        height, width = self._window
        axes.imshow([[to_rgb(cell.fill or "#ffffff") for cell in row] for row in cells], interpolation="nearest")
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[], aspect="equal")
        for edge in range(1, max(height, width)):
            if edge < width:
                axes.axvline(edge - 0.5, color="#9a9a9a", linewidth=0.4)
            if edge < height:
                axes.axhline(edge - 0.5, color="#9a9a9a", linewidth=0.4)
        if self._boxes is not None:
            for edge in range(self._boxes[0], height, self._boxes[0]):
                axes.axhline(edge - 0.5, color="black", linewidth=1.6)
            for edge in range(self._boxes[1], width, self._boxes[1]):
                axes.axvline(edge - 0.5, color="black", linewidth=1.6)
        for row, line in enumerate(cells):
            for column, cell in enumerate(line):
                if cell.fill is None or cell.text.isupper():
                    self._symbol(axes, row, column, cell)
        if marks:
            self._marks(axes, cells)

    def _marks(self, axes: Axes, cells: list[list[Cell]]) -> None:
        """Draw frames around changed cells, and dots in unsure cells whose colour replaces a symbol that could fade."""
        from matplotlib.patches import Rectangle

        width = 2.2 if max(self._window) <= 12 else 1.2
        for row, line in enumerate(cells):
            for column, cell in enumerate(line):
                if cell.changed:
                    inset = Rectangle((column - 0.42, row - 0.42), 0.84, 0.84, fill=False)
                    inset.set(edgecolor=self._edge(cell), linewidth=width)
                    axes.add_patch(inset)
        unsure = [
            (column, row, contrast(cell.fill))
            for row, line in enumerate(cells)
            for column, cell in enumerate(line)
            if cell.fill is not None and not cell.given and cell.confidence < _UNSURE
        ]
        if unsure:
            columns, rows, colours = zip(*unsure, strict=True)
            axes.scatter(columns, rows, s=(0.12 * 72 * _BOARD / max(self._window)) ** 2, c=colours, linewidths=0)

    def _edge(self, cell: Cell) -> str:
        # Among ARC's colours, any colour but black or white would be mistaken for that of a cell.
        return contrast(cell.fill) if cell.fill is not None and self._thinking.manifest.kind == "arc" else _CHANGED

    def _symbol(self, axes: Axes, row: int, column: int, cell: Cell) -> None:
        if cell.text in (" ", "."):
            return
        axes.text(
            column,
            row,
            cell.text,
            ha="center",
            va="center_baseline",
            fontsize=min(18.0, 0.6 * 72 * _BOARD / max(self._window)),
            fontweight="bold" if cell.given else "normal",
            color=_WRONG if cell.contradicts else "black" if cell.given else _ANSWERED,
            alpha=1.0 if cell.given else 0.3 + 0.7 * min(max(cell.confidence, 0.0), 1.0),
        )
