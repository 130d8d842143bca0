"""The accuracy/cost plot of one evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trm_core.errors import UsageError

_COLORS = {
    "learned": "tab:blue",
    "threshold": "tab:orange",
    "never": "tab:gray",
    "all": "black",
    "random": "tab:green",
    "act": "tab:red",
}
_MARKERS = {"learned": "o", "threshold": "s", "never": "v", "all": "^", "random": "x", "act": "D"}
_OTHER_COLOR, _OTHER_MARKER = "tab:purple", "P"  # for policies that are not listed above


def require_drawable(path: Path) -> None:
    """Raise UsageError for a path that cannot be drawn to; called before a long evaluation, not after it."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"cannot draw into {path}", hint="use a name that ends in .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise UsageError(f"cannot draw into {path}: there is no folder {path.parent}", hint="make the folder first")


def plot_pareto(record: dict[str, Any], path: Path) -> None:
    """Write to `path` accuracy against price spent: curves of learned and threshold, points of the other policies. For
    puzzles, where nothing can be bought, it is whole puzzles right against steps.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    require_drawable(path)
    puzzles = bool(record.get("puzzles"))
    cost, told = ("spent", ("accuracy", "low", "high"))
    if puzzles:
        cost, told = ("steps", ("exact_accuracy", "exact_low", "exact_high"))
    drawn: set[str] = set()
    figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    for name, curve in record.get("curves", {}).items():
        points = sorted((s[cost], *(s[part] for part in told)) for s in curve)
        x, y, low, high = (list(column) for column in zip(*points, strict=True))
        axes.plot(x, [100 * v for v in y], color=_COLORS[name], marker=_MARKERS[name], markersize=4, label=name)
        axes.fill_between(x, [100 * v for v in low], [100 * v for v in high], color=_COLORS[name], alpha=0.12)
    for score in record["scores"]:
        if score["policy"] in record.get("curves", {}):
            continue
        y, low, high = (100 * score[name] for name in told)
        error = [[max(y - low, 0.0)], [max(high - y, 0.0)]]
        axes.errorbar(
            [score[cost]],
            [y],
            yerr=error,
            fmt=_MARKERS.get(score["policy"], _OTHER_MARKER),
            color=_COLORS.get(score["policy"], _OTHER_COLOR),
            capsize=3,
            label=None if score["policy"] in drawn else score["policy"],
        )
        drawn.add(score["policy"])
    axes.set_xlabel("reasoning steps per sample" if puzzles else "price units spent per sample")
    axes.set_ylabel("whole puzzles right, %" if puzzles else "accuracy, %")
    axes.set_title(
        f"{record['data']['split']} split, {record['scores'][0]['rows']} samples; bands: 95 % intervals", fontsize=10
    )
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    finally:
        plt.close(figure)
