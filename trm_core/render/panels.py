"""Terminal panels of equal width, wide enough for their titles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.columns import Columns
from rich.panel import Panel
from rich.text import Text

_FRAME = 4  # edges and the space inside them
_AROUND_TITLE = 4


@dataclass(frozen=True)
class Titled:
    """A panel. content: lines that must not be wrapped."""

    content: Text
    title: str
    subtitle: str = ""


def side_by_side(panels: Sequence[Titled], max_width: int) -> Columns:
    """The panels, as many per row as fit."""
    widths = [
        width
        for panel in panels
        for width in (
            max(line.cell_len for line in panel.content.split(allow_blank=True)) + _FRAME,
            len(panel.title) + _AROUND_TITLE + 2,
            len(panel.subtitle) + _AROUND_TITLE + 2,
        )
    ]
    width = min(max(widths), max_width)
    return Columns(
        [
            Panel(panel.content, title=Text(panel.title), subtitle=Text(panel.subtitle) or None, width=width)
            for panel in panels
        ]
    )
