"""Show reasoning about capsules in a terminal: for each step, the capsules opened so far and the model's beliefs.

A capsule shows the number of the step that opened it; without colours, those just opened are marked with a star.
"""

from __future__ import annotations

import math

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text

from trm_core.render.panels import Titled, side_by_side
from trm_core.render.thinking import CapsuleThinking

_CLASSES = 5
_NAME_WIDTH = 16
_BAR_WIDTH = 16
_NUMBERS_WIDTH = 12  # of the share and its change after a bar
_CELL_WIDTH = 4
_NEW = Style(color="#000000", bgcolor="#ffd75f", bold=True)
_OPEN = Style(color="#ffffff", bgcolor="#2f6db5")


class CapsulePanels:
    """A panel for each step: the lattice of capsules over the beliefs."""

    def __init__(self, thinking: CapsuleThinking) -> None:
        self._thinking = thinking

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        plain = console.color_system is None
        width = options.max_width - 4
        bar, empty = ("#", ".") if options.ascii_only else ("█", "░")
        # All panels show the same classes, which must include the leader after every step.
        leaders = self._thinking.leaders(max(_CLASSES, len(self._thinking.winners())))
        panels = []
        for number, step in enumerate(self._thinking.steps):
            halt = "" if step.halt is None else f", halt {step.halt:.0%}"
            opened = f"opened {', '.join(map(str, step.opened))}" if step.opened else "opened nothing"
            content = Text("\n").join(
                [*self._lattice(number, plain, width), Text(), *self._beliefs(leaders, number, bar + empty, width)]
            )
            content.no_wrap, content.overflow = True, "crop"
            panels.append(Titled(content, f"step {number + 1}{halt}", opened))
        yield side_by_side(panels, options.max_width)

    def _lattice(self, last: int, plain: bool, width: int) -> list[Text]:
        columns = max(1, min(self._thinking.lattice[1], width // _CELL_WIDTH))  # a long row is wrapped
        opened_at = self._thinking.opened_at(last)
        lines: list[Text] = []
        for start in range(0, self._thinking.num_capsules, columns):
            line = Text()
            for capsule in range(start, min(start + columns, self._thinking.num_capsules)):
                line.append_text(_cell(opened_at.get(capsule), last, plain))
            lines.append(line)
        return lines

    def _beliefs(self, leaders: list[int], number: int, marks: str, width: int) -> list[Text]:
        belief = self._thinking.steps[number].belief
        before = self._thinking.steps[number - 1].belief if number else belief
        names = [self._thinking.name(leader) for leader in leaders]
        name_width = min(_NAME_WIDTH, max(map(cell_len, names)), max(1, width // 3))
        bar_width = max(1, min(_BAR_WIDTH, width - name_width - _NUMBERS_WIDTH))
        lines: list[Text] = []
        for leader, name in zip(leaders, names, strict=True):
            share, moved = float(belief[leader]), float(belief[leader] - before[leader])
            full = 0 if math.isnan(share) else round(bar_width * share)
            first = leader == int(belief.argmax())
            line = Text(f"{set_cell_size(name, name_width)} ", Style(bold=first))
            line.append(marks[0] * full, Style(color="#2f6db5"))
            line.append(marks[1] * (bar_width - full), Style(dim=True))
            line.append(f" {share:4.0%}", Style(bold=first))
            line.append(f" {moved:+4.0%}" if abs(moved) >= 0.005 else "     ", Style(dim=True))
            lines.append(line)
        return lines


def _cell(opened_at: int | None, now: int, plain: bool) -> Text:
    if opened_at is None:
        return Text("  . ", Style(dim=True))
    if opened_at < now:
        return Text(f"{opened_at + 1:3d} ", Style() if plain else _OPEN)
    return Text(f"{opened_at + 1:3d}*" if plain else f"{opened_at + 1:3d} ", Style() if plain else _NEW)
