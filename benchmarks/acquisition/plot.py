"""Accuracy against opened capsules: mean curves over seeds with bands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trm_core.errors import UsageError
from trm_core.evaluation.plot import require_drawable

_STYLES = {"ours": "-", "reference": ":", "field": "--", "peeks": "-."}
# In the record, but here they would only hide the others.
_LEFT_OUT = (", random order", ", capsules at random")
_TICKS = (0, 1, 2, 3, 5, 8, 16, 32, 64)


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw a line per method to `path`: solid ours, dashed published, dotted references, dash-dotted peeking."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    require_drawable(path)
    opened = record["mean_curves"]["opened"]
    figure, axes = plt.subplots(figsize=(9.6, 5.4), layout="constrained")
    colors = plt.get_cmap("tab20")
    lines = [(n, line) for n, line in record["mean_curves"]["methods"].items() if not n.endswith(_LEFT_OUT)]
    for place, (name, line) in enumerate(lines):
        group = record["methods"][name]["group"]
        label = f"{name} (peeks)" if group == "peeks" else name
        axes.plot(
            opened, percent(line["accuracy"]), _STYLES[group], color=colors(place % 20), label=label, linewidth=1.4
        )
        if line["low"][0] is not None:
            axes.fill_between(opened, percent(line["low"]), percent(line["high"]), color=colors(place % 20), alpha=0.1)
    # Logarithmic, because the curves are steep over the first few capsules and flat after them.
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_xlim(0, opened[-1])
    axes.set_xticks([tick for tick in _TICKS if tick <= opened[-1]])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel("capsules opened per sample, mean")
    axes.set_ylabel("accuracy, %")
    seeds = len(record["seeds"])
    bands = "bands: 95 % intervals over seeds" if seeds > 1 else "no bands"
    axes.set_title(f"{record['split']} split, {seeds} seed{'s' * (seeds > 1)}; {bands}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    finally:
        plt.close(figure)


def percent(values: list[float]) -> list[float]:
    return [100 * value for value in values]
