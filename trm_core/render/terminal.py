"""Show the solving of a puzzle in a terminal: a panel per step, as many side by side as fit.

Without colours (in a pipe or a dumb terminal), changed cells are marked with a star instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text

from trm_core.render.board import Cell, answer, box_shape, contrast, question, window_of
from trm_core.render.panels import Titled, side_by_side
from trm_core.render.thinking import PuzzleThinking

_UNSURE = 0.5
_CHANGED = "#ffd75f"
_WRONG = "#d70000"


class PuzzlePanels:
    """The question, then the answer after each step."""

    def __init__(self, thinking: PuzzleThinking) -> None:
        self._thinking = thinking

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        thinking = self._thinking
        window = window_of(thinking)
        painter = _Painter(
            box_shape(thinking.manifest),
            plain=console.color_system is None,
            # Two characters together are about square, and leave room for a mark.
            cell_width=2 if 2 * window[1] + 10 <= options.max_width else 1,
            ascii_only=options.ascii_only,
        )
        panels = [Titled(painter.board(question(thinking, window)), "question")]
        for number, step in enumerate(thinking.steps):
            cells = answer(thinking, number, window)
            changed = sum(cell.changed for row in cells for cell in row)
            sure = float(np.mean([cell.confidence for row in cells for cell in row]))
            title = f"step {number + 1}, halt {step.halt:.0%}"
            panels.append(Titled(painter.board(cells), title, f"{changed} changed, sure {sure:.0%}"))
        yield side_by_side(panels, options.max_width)


class _Painter:
    """Draws boards for one console."""

    def __init__(self, boxes: tuple[int, int] | None, *, plain: bool, cell_width: int, ascii_only: bool) -> None:
        self._boxes, self._plain, self._cell_width = boxes, plain, cell_width
        self._bar, self._dash, self._cross = "|-+" if ascii_only else "│─┼"

    def board(self, rows: Sequence[Sequence[Cell]]) -> Text:
        lines: list[Text] = []
        for number, row in enumerate(rows):
            line = Text()
            for column, cell in enumerate(row):
                if self._boxes and column and column % self._boxes[1] == 0:
                    line.append(f"{self._bar} ", Style(dim=True))
                line.append(self._shown(cell), self._style(cell))
            if self._boxes and number and number % self._boxes[0] == 0:
                lines.append(self._rule(len(row)))
            lines.append(line)
        board = Text("\n").join(lines)
        board.no_wrap, board.overflow = True, "crop"
        return board

    def _rule(self, columns: int) -> Text:
        assert self._boxes is not None
        across = self._boxes[1]
        pieces = [
            self._dash * (self._cell_width * across + (1 if number else 0)) for number in range(columns // across)
        ]
        return Text(self._cross.join(pieces), Style(dim=True))

    def _shown(self, cell: Cell) -> str:
        text = cell.text
        if not self._plain and cell.fill is not None and not text.isupper():
            text = "·" if cell.changed else ""  # the colour says the rest
        if self._plain and cell.changed and len(text) < self._cell_width:
            text += "*"
        return text[: self._cell_width].ljust(self._cell_width)

    def _style(self, cell: Cell) -> Style:
        if self._plain:
            return Style()
        if cell.fill is not None:
            return Style(color=contrast(cell.fill), bgcolor=cell.fill, bold=True)
        if cell.contradicts:
            return Style(color=_WRONG, bold=True)
        if cell.changed:
            return Style(color="#000000", bgcolor=_CHANGED)
        return Style(bold=cell.given, dim=not cell.given and cell.confidence < _UNSURE)
