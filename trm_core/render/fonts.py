"""Fonts for text in any script: characters that matplotlib's own font lacks are taken from installed fonts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

_OWN = "DejaVu Sans"  # ships with matplotlib
_BOXES = "Last Resort"  # also ships with it; draws a box for every character


@dataclass(frozen=True)
class Fonts:
    """families: matplotlib takes each character from the first family that has it; missing: characters in none."""

    families: Sequence[str]
    missing: frozenset[str]


def fonts_for(text: str) -> Fonts:
    """Fonts that cover as many characters of `text` as the installed ones can."""
    from matplotlib.font_manager import fontManager, get_font

    upright = {font.name: font.fname for font in fontManager.ttflist if font.style == "normal" and font.weight == 400}
    families, missing = [_OWN], set(text)
    for family in [_OWN, *sorted(upright.keys() - {_OWN})]:
        if not missing:
            break
        if family.startswith(_BOXES):
            continue
        with suppress(OSError):  # matplotlib's cache may list fonts that are no longer installed
            found = missing & {chr(code) for code in get_font(upright[family]).get_charmap()}
            missing -= found
            if found and family != _OWN:
                families.append(family)
    return Fonts(families, frozenset(missing))
