"""Draw one frame of reasoning about capsules: which are open and since when, the beliefs, and their course so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trm_core.render.course import Curve, draw_course
from trm_core.render.fonts import fonts_for
from trm_core.render.thinking import CapsuleThinking

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CLASSES = 8
_NAME_WIDTH = 18
_NEW, _OPEN, _CLOSED = "#ffb000", "#9cc2e8", "#f0f0f0"
_BELIEF = "#1f5fa8"
_COURSE = 1.1
_SMALLEST_FONT = 4.0  # points; smaller digits are illegible


class CapsuleDrawing:
    """Frames of one thinking."""

    def __init__(self, thinking: CapsuleThinking) -> None:
        self._thinking = thinking
        self._leaders = thinking.leaders(_CLASSES)
        names = {leader: _short(thinking.name(leader)) for leader in self._leaders}
        fonts = fonts_for("".join(names.values()))
        self._families = list(fonts.families)
        self._names = {leader: str(leader) if fonts.missing & set(name) else name for leader, name in names.items()}
        self.notes = _notes(fonts.missing)
        self._curves = [Curve("largest belief", [float(step.belief.max()) for step in thinking.steps], _BELIEF)]
        halts = [step.halt for step in thinking.steps if step.halt is not None]
        if len(halts) == len(thinking.steps):
            self._curves.insert(0, Curve("halt", halts, "#c0392b"))

    @property
    def _stacked(self) -> bool:
        """Whether the capsules are drawn above the beliefs, across the full width: they do not form a square."""
        rows, columns = self._thinking.lattice
        return rows != columns

    @property
    def _cell(self) -> float:
        """Side of a capsule in inches."""
        columns = self._thinking.lattice[1]
        return min(0.5, 6.8 / columns) if self._stacked else 2.7 / columns

    @property
    def _lattice_height(self) -> float:
        return self._cell * self._thinking.lattice[0] + 0.6

    @property
    def size(self) -> tuple[float, float]:
        beliefs = 0.3 * len(self._leaders) + 0.9
        upper = beliefs + self._lattice_height if self._stacked else max(beliefs, 3.2)
        return 7.2, upper + 0.4 + _COURSE

    def draw(self, figure: Figure, number: int, *, final: bool) -> None:
        step = self._thinking.steps[number]
        count = len(self._thinking.steps)
        title = f"answer after {count} step{'s' * (count > 1)}" if final else f"step {number + 1} of {count}"
        if final:
            title += f": {self._names[int(step.belief.argmax())]}"
        halt = "" if step.halt is None else f", halt probability {step.halt:.0%}"
        figure.suptitle(title + halt, fontsize=11, fontfamily=self._families)
        parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[self.size[1] - _COURSE - 0.4, _COURSE])[:, 0]
        if self._stacked:
            heights = [self._lattice_height, 0.3 * len(self._leaders) + 0.9]
            lattice, beliefs = parts[0].subplots(2, 1, height_ratios=heights)
        else:
            lattice, beliefs = parts[0].subplots(1, 2, width_ratios=[1, 1.1])
        self._lattice(lattice, number)
        self._beliefs(beliefs, number)
        draw_course(parts[1], self._curves, number)

    def _lattice(self, axes: Axes, number: int) -> None:
        from matplotlib.colors import to_rgb

        rows, columns = self._thinking.lattice
        opened_at = self._thinking.opened_at(number)
        count = self._thinking.num_capsules
        fills = [_CLOSED] * count + ["white"] * (rows * columns - count)  # the last row may be shorter
        font = min(9.0, 0.5 * 72 * self._cell)
        for capsule, since in opened_at.items():
            fills[capsule] = _NEW if since == number else _OPEN
            row, column = divmod(capsule, columns)
            if font >= _SMALLEST_FONT:
                axes.text(column, row, str(since + 1), ha="center", va="center", fontsize=font)
        axes.imshow(np.array([to_rgb(fill) for fill in fills]).reshape(rows, columns, 3), aspect="equal")
        axes.set(xticks=[], yticks=[])
        gap = min(1.5, 0.1 * 72 * self._cell)
        for edge in range(1, columns):
            axes.axvline(edge - 0.5, color="white", linewidth=gap)
        for edge in range(1, rows):
            axes.axhline(edge - 0.5, color="white", linewidth=gap)
        axes.spines[:].set_visible(False)
        numbers = "\n(number: the step that opened it)" if font >= _SMALLEST_FONT else "\n(orange: in this step)"
        axes.set_title(f"{len(opened_at)} of {count} capsules open{numbers}", fontsize=9)

    def _beliefs(self, axes: Axes, number: int) -> None:
        from matplotlib.ticker import PercentFormatter

        belief = self._thinking.steps[number].belief
        places = np.arange(len(self._leaders))
        axes.barh(places, belief[self._leaders], color=_BELIEF, height=0.65)
        if number:
            before = self._thinking.steps[number - 1].belief[self._leaders]
            axes.plot(before, places, "|", color="black", markersize=13, markeredgewidth=1.5)
        axes.set(xlim=(0, 1), ylim=(len(places) - 0.4, -0.6))
        names = [self._names[leader] for leader in self._leaders]
        axes.set_yticks(places, names, fontsize=8, fontfamily=self._families)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title("belief (line: a step before)", fontsize=9)


def _short(name: str) -> str:
    """Shorten a name in the middle, because long names often begin alike."""
    if len(name) > _NAME_WIDTH:
        name = f"{name[: _NAME_WIDTH - 8]}…{name[-7:]}"
    return name.replace("$", r"\$")  # a dollar would start a formula


def _notes(missing: frozenset[str]) -> list[str]:
    if not missing:
        return []
    some = "".join(sorted(missing)[:10])
    return [f"no installed font has {some!r}: classes with such characters are drawn by number"]
