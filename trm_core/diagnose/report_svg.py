"""Draw a chart of lines over steps as SVG, without a plotting library: importing one takes longer than everything else.

Colours are CSS classes and variables of the surrounding page (`report_html`), so charts follow its light or dark theme.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trm_core.diagnose.series import Series
from trm_core.diagnose.statistics import distinct

COLOURS = 8
MOST_POINTS = 800  # per line
_MOST_MARKS = 60

_WIDTH, _HEIGHT = 380, 215
_TOP, _BOTTOM, _LEFT = 10, 24, 44
_LETTER = 6.5  # width of a letter in labels
_ROW = 12  # least distance between labels


@dataclass(frozen=True)
class Line:
    """One curve. `label`: written at its end; `dashed`: for what is not training."""

    label: str
    series: Series
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """`band`: the healthy values, open-ended where None. `levels`: (label, value) of horizontal lines, such as chance.
    `floor` and `ceiling`: values that the axis must include.
    """

    title: str
    lines: Sequence[Line]
    log: bool = False
    band: tuple[float | None, float | None] | None = None
    levels: Sequence[tuple[str, float]] = ()
    floor: float | None = None
    ceiling: float | None = None


def escape(text: object) -> str:
    """Make text from a stranger's run safe: no markup, nothing unencodable, nothing that reverses or hides text."""
    bad = "\N{REPLACEMENT CHARACTER}"
    return html.escape("".join(letter if letter.isprintable() or letter == "\n" else bad for letter in str(text)))


def draw(chart: Chart) -> str:
    """The chart as one <svg>."""
    finite = [line.series.finite() for line in chart.lines]
    values = np.concatenate([series.values for series in finite]) if finite else np.zeros(0)
    steps = [int(step) for line in chart.lines if len(line.series) for step in line.series.steps[[0, -1]]]
    name = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(chart.title)}">'
    if not steps:
        return f'{name}<text x="{_WIDTH / 2}" y="{_HEIGHT / 2}" text-anchor="middle">nothing logged</text></svg>'
    y = _axis_of(chart, values)
    labels = [_end_label(line) for line in chart.lines]
    across = [(label, value) for label, value in chart.levels if y.low <= value <= y.high]
    letters = max(len(label) for label in [*labels, *(label for label, _ in across)])
    right = _WIDTH - 8 - _LETTER * letters
    x = _Axis(min(min(steps), 0), max(max(steps), 1), _LEFT, right)
    bottom = _HEIGHT - _BOTTOM
    parts = [name]
    if chart.band is not None:
        parts.append(_band(chart.band, y, right))
    for value in y.ticks(5):
        at = _px(y.at(value))
        parts.append(f'<path class="g" d="M{_LEFT} {at}H{_px(right)}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{at}" dy=".32em" text-anchor="end">{tick_text(value)}</text>')
    for value in x.ticks(4):
        at = _px(x.at(value))
        anchor = "end" if x.at(value) > right - 10 else "middle"
        parts.append(f'<path class="g" d="M{at} {bottom}v4"/>')
        parts.append(f'<text x="{at}" y="{_HEIGHT - 7}" text-anchor="{anchor}">{tick_text(value)}</text>')
    parts.append(f'<path class="a" d="M{_LEFT} {bottom}H{_px(right)}"/>')
    ends = []
    for label, value in across:
        parts.append(f'<path class="v" d="M{_LEFT} {_px(y.at(value))}H{_px(right)}"/>')
        ends.append((y.at(value), label, "m"))
    for index, line in enumerate(chart.lines):
        colour = f"c{index % COLOURS}"
        dashed = " d" if line.dashed else ""
        parts.append(f'<path class="p {colour}{dashed}" d="{_path(line.series, x, y)}"/>')
        parts += _marks(line.series, x, bottom)
        ends.append((y.at(finite[index].last) if len(finite[index]) else bottom, labels[index], f"e{index % COLOURS}"))
    for height, label, colour in _apart(ends, _TOP + 4, bottom):
        parts.append(f'<text class="{colour}" x="{_px(right + 5)}" y="{_px(height)}" dy=".32em">{escape(label)}</text>')
    return "".join([*parts, "</svg>"])


def number_text(value: float) -> str:
    """A number for reading, with three significant digits."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return tick_text(float(f"{value:.3g}"))


def tick_text(value: float) -> str:
    """12000 is 12k, 2000000 is 2M; very small and very large numbers have a power of ten."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1000 * size and (unit != "k" or abs(value) >= 1e4 or value % 1000 == 0):
            return f"{value / size:.6g}{unit}"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.6g}"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def thinned(x: NDArray[np.float64], values: NDArray[np.float64], most: int = MOST_POINTS) -> NDArray[np.intp]:
    """Indices of the points to draw: in each stretch of the axis the least, the greatest and one that is not finite, if
    any, so that no spike or gap is lost. `x` must rise.
    """
    count = len(x)
    if count <= most:
        return np.arange(count)
    buckets = most // 3 - 1
    borders = np.searchsorted(x, np.linspace(x[0], x[-1], buckets + 1)[1:-1])
    kept = [0, count - 1]
    for start, end in zip([0, *borders], [*borders, count], strict=True):
        piece = values[start:end]
        missing = np.isnan(piece)
        if not missing.all():
            kept += [start + np.nanargmin(piece), start + np.nanargmax(piece)]
        if missing.any():
            kept.append(start + np.argmax(missing))
    return distinct(np.array(kept, dtype=np.intp))


@dataclass(frozen=True)
class _Axis:
    """Values `low` to `high` at pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        return float(self.places(np.array([value]))[0])

    def places(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pixels of values; those beyond the axis (such as zero on a logarithmic one) are placed at its end."""
        inside = np.clip(values, self.low, self.high)
        if self.log:
            share = (np.log(inside) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        else:  # halves, because the difference of two large numbers can overflow
            share = (inside / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int) -> list[float]:
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            if last > first:
                return [10.0**power for power in range(first, last + 1, math.ceil((last - first + 1) / (about + 1)))]
        rough = (self.high / 2 - self.low / 2) / about * 2
        power = 10.0 ** math.floor(math.log10(rough))
        distance = power * next((factor for factor in (1, 2, 2.5, 5) if factor * power >= rough * 0.999), 10)
        first, last = math.ceil(self.low / distance - 1e-9), math.floor(self.high / distance + 1e-9)
        return [float(f"{multiple * distance:.12g}") for multiple in range(first, last + 1)]


def _axis_of(chart: Chart, values: NDArray[np.float64]) -> _Axis:
    span = _HEIGHT - _BOTTOM, _TOP
    if chart.log and (values > 0).any():
        positive = np.clip(values[values > 0], 1e-290, 1e290)
        low, high = float(positive.min()), float(positive.max())
        return _Axis(low / 1.3, max(high * 1.3, low * 10), *span, log=True)
    reach = [value for value in (chart.floor, chart.ceiling) if value is not None]
    reach += [value for _, value in chart.levels]
    reached = np.clip(np.array([*values, *reach]), -1e290, 1e290)
    reached[np.abs(reached) < 1e-290] = 0.0
    low, high = (float(reached.min()), float(reached.max())) if len(reached) else (0.0, 1.0)
    if 0 < low < 0.6 * high:
        low = 0.0  # a curve that falls towards zero should show how near it is
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # constant
        room = abs(high) / 2 or 1.0
        return _Axis(low - room if low else 0.0, high + room, *span)
    room = 0.05 * (high - low)
    below = 0.0 if low in (0.0, chart.floor) else room
    return _Axis(low - below, high + (0.0 if high == chart.ceiling else room), *span)


def _path(series: Series, x: _Axis, y: _Axis) -> str:
    places = x.places(series.steps.astype(float))
    kept = thinned(places, series.values)
    pieces, pen_up = [], True
    values = series.values[kept]
    drawn = y.places(values)
    for index, (across, up) in enumerate(zip(places[kept].tolist(), drawn.tolist(), strict=True)):
        if math.isnan(up):
            pen_up = True
        elif pen_up:
            alone = index + 1 == len(kept) or math.isnan(drawn[index + 1])
            pieces.append(f"M{_px(across)} {_px(up)}{'h0' if alone else ''}")  # a round cap makes a dot of h0
            pen_up = False
        else:
            pieces.append(f"L{_px(across)} {_px(up)}")
    return "".join(pieces)


def _marks(series: Series, x: _Axis, bottom: float) -> list[str]:
    """Small triangles on the axis at the steps where the value was not finite."""
    steps = series.steps[np.isnan(series.values)]
    places = distinct(np.round(x.places(steps.astype(float)) / 3) * 3)
    if len(places) > _MOST_MARKS:
        places = places[np.linspace(0, len(places) - 1, _MOST_MARKS).astype(int)]
    if not len(places):
        return []
    shape = "".join(f"M{_px(place)} {_px(bottom - 7)}l3.5 7h-7z" for place in places.tolist())
    return [
        f'<path class="n" d="{shape}"><title>not finite at {len(steps)} steps, first {int(steps[0])}</title></path>'
    ]


def _band(band: tuple[float | None, float | None], y: _Axis, right: float) -> str:
    low, high = (y.low if band[0] is None else band[0]), (y.high if band[1] is None else band[1])
    top, bottom = y.at(high), y.at(low)
    width, height = _px(right - _LEFT), _px(max(bottom - top, 1.5))
    return f'<rect class="b" x="{_LEFT}" y="{_px(top)}" width="{width}" height="{height}"/>'


def _end_label(line: Line) -> str:
    name = line.label if len(line.label) <= 18 else line.label[:8] + "\N{HORIZONTAL ELLIPSIS}" + line.label[-9:]
    return f"{name} {number_text(line.series.last)}".strip()


def _apart(ends: list[tuple[float, str, str]], top: float, bottom: float) -> list[tuple[float, str, str]]:
    """The labels, sorted by height and moved apart so that none covers another."""
    placed = sorted(ends)
    heights: list[float] = []
    for at, _, _ in placed:
        heights.append(max(at, top, heights[-1] + _ROW if heights else top))
    limit = bottom
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], limit)
        limit = heights[index] - _ROW
    return [(height, label, colour) for height, (_, label, colour) in zip(heights, placed, strict=True)]


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
