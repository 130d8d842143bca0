"""The strip below a frame: curves of a few values between 0 and 1, up to the current step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure


@dataclass(frozen=True)
class Curve:
    """values: one for each step."""

    name: str
    values: Sequence[float]
    colour: str


def draw_course(figure: SubFigure, curves: Sequence[Curve], number: int) -> None:
    """Draw the curves up to step `number` (from 0), with room for the steps to come."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes = figure.subplots()
    count = len(curves[0].values)
    for curve in curves:
        axes.plot(
            range(1, number + 2),
            curve.values[: number + 1],
            ".-",
            color=curve.colour,
            label=curve.name,
            linewidth=1.4,
            markersize=6,
            clip_on=False,
        )
    axes.set(xlim=(0.7, count + 0.3), ylim=(0, 1))
    axes.set_xlabel("step", fontsize=8, labelpad=1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_yticks([0, 0.5, 1])
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
