"""One frame of the thinking about capsules: which are open since when, what is believed, the course so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trm_core.render.course import Curve, draw_course
from trm_core.render.thinking import CapsuleThinking

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CLASSES = 8
_NAME_WIDTH = 18
_NEW, _OPEN, _CLOSED = "#ffb000", "#9cc2e8", "#f0f0f0"
_BELIEF = "#1f5fa8"
_COURSE = 1.1


class CapsuleDrawing:
    """Frames of one thinking."""

    def __init__(self, thinking: CapsuleThinking) -> None:
        self._thinking = thinking
        self._leaders = thinking.leaders(_CLASSES)
        self._curves = [Curve("largest belief", [float(step.belief.max()) for step in thinking.steps], _BELIEF)]
        halts = [step.halt for step in thinking.steps if step.halt is not None]
        if len(halts) == len(thinking.steps):
            self._curves.insert(0, Curve("halt", halts, "#c0392b"))

    @property
    def _in_a_row(self) -> bool:
        rows, columns = self._thinking.lattice
        return rows == 1 and columns > 1

    @property
    def size(self) -> tuple[float, float]:
        beliefs = 0.3 * len(self._leaders) + 0.9
        return 7.2, (beliefs + 1.2 if self._in_a_row else max(beliefs, 3.2)) + 0.4 + _COURSE

    def draw(self, figure: Figure, number: int, *, final: bool) -> None:
        step = self._thinking.steps[number]
        count = len(self._thinking.steps)
        title = f"answer after {count} step{'s' * (count > 1)}" if final else f"step {number + 1} of {count}"
        if final:
            title += f": {self._name(int(step.belief.argmax()))}"
        halt = "" if step.halt is None else f", halt probability {step.halt:.0%}"
        figure.suptitle(title + halt, fontsize=11)
        parts = figure.subfigures(2, 1, height_ratios=[self.size[1] - _COURSE - 0.4, _COURSE])
        if self._in_a_row:
            lattice, beliefs = parts[0].subplots(2, 1, height_ratios=[1, 0.3 * len(self._leaders) + 0.6])
        else:
            lattice, beliefs = parts[0].subplots(1, 2, width_ratios=[1, 1.1])
        self._lattice(lattice, number)
        self._beliefs(beliefs, number)
        draw_course(parts[1], self._curves, number)

    def _lattice(self, axes: Axes, number: int) -> None:
        from matplotlib.colors import to_rgb

        rows, columns = self._thinking.lattice
        opened_at = self._thinking.opened_at(number)
        fills = [_CLOSED] * self._thinking.num_capsules
        for capsule, since in opened_at.items():
            fills[capsule] = _NEW if since == number else _OPEN
            row, column = divmod(capsule, columns)
            axes.text(column, row, str(since + 1), ha="center", va="center", fontsize=9 if columns <= 24 else 6)
        axes.imshow(np.array([to_rgb(fill) for fill in fills]).reshape(rows, columns, 3), aspect="equal")
        axes.set(xticks=[], yticks=[])
        for edge in range(1, columns):
            axes.axvline(edge - 0.5, color="white", linewidth=1.5)
        for edge in range(1, rows):
            axes.axhline(edge - 0.5, color="white", linewidth=1.5)
        axes.spines[:].set_visible(False)
        axes.set_title(
            f"{len(opened_at)} of {self._thinking.num_capsules} capsules open, and since which step", fontsize=9
        )

    def _beliefs(self, axes: Axes, number: int) -> None:
        from matplotlib.ticker import PercentFormatter

        belief = self._thinking.steps[number].belief
        places = np.arange(len(self._leaders))
        axes.barh(places, belief[self._leaders], color=_BELIEF, height=0.65)
        if number:
            before = self._thinking.steps[number - 1].belief[self._leaders]
            axes.plot(before, places, "|", color="black", markersize=13, markeredgewidth=1.5)
        axes.set(xlim=(0, 1), ylim=(len(places) - 0.4, -0.6))
        axes.set_yticks(places, [self._name(leader) for leader in self._leaders], fontsize=8)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title("belief (line: a step before)", fontsize=9)

    def _name(self, number: int) -> str:
        name = self._thinking.name(number)
        # A dollar would start a formula.
        return (name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 1] + "…").replace("$", r"\$")
