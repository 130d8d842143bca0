"""The picture of an inspection: labels, norms, detail per capsule, and the probe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trm_core.data.inspect import Inspection

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_NAMED = 25
_COLOURS = {"train": "#4477aa", "validation": "#ccbb44", "test": "#ee6677", "all": "#4477aa"}


def plot_inspection(inspection: Inspection, path: Path) -> None:
    """Write four panels to `path`; its suffix chooses the format (png, svg, pdf)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    _labels(inspection, panels[0, 0])
    _norms(inspection, panels[0, 1])
    _detail(inspection, panels[1, 0])
    _probe(inspection, panels[1, 1])
    rows = ", ".join(f"{name} {facts.rows}" for name, facts in inspection.splits.items())
    figure.suptitle(f"{inspection.path.name}: {inspection.kind}, {rows} samples")
    figure.savefig(path, dpi=110)


def _labels(inspection: Inspection, axes: Axes) -> None:
    axes.set_title("labels, as a share of each split")
    ids = sorted({label for facts in inspection.splits.values() for label in facts.labels})
    if not ids:
        _nothing(axes, "no labels")
        return
    with_labels = {name: facts for name, facts in inspection.splits.items() if facts.labels}
    width = 0.8 / len(with_labels)
    for number, (name, facts) in enumerate(with_labels.items()):
        total = sum(facts.labels.values())
        shares = [facts.labels.get(label, 0) / total for label in ids]
        if len(ids) > _MAX_NAMED:
            axes.plot(ids, shares, ".-", linewidth=0.5, markersize=3, label=name, color=_COLOURS[name])
        else:
            places = np.arange(len(ids)) + (number - (len(with_labels) - 1) / 2) * width
            axes.bar(places, shares, width, label=name, color=_COLOURS[name])
    if len(ids) <= _MAX_NAMED:
        names = inspection.class_names
        texts = [names[label] if names and label < len(names) else str(label) for label in ids]
        long = max(map(len, texts)) > 4
        axes.set_xticks(range(len(ids)), texts, rotation=45 if long else 0, ha="right" if long else "center")
    axes.set_xlabel("concept id + 4" if inspection.task == "concepts" else "class")
    _legend_above(axes)


def _norms(inspection: Inspection, axes: Axes) -> None:
    axes.set_title("length of vectors")
    shown = {name: values for name, values in inspection.norm_samples.items() if len(values)}
    if not shown:
        _nothing(axes, "no finite values")
        return
    edges = np.histogram_bin_edges(np.concatenate(list(shown.values())), 60)
    for name, values in shown.items():
        weights = np.full(len(values), 1.0 / len(values))
        axes.hist(values, bins=edges.tolist(), weights=weights.tolist(), alpha=0.6, label=name)
    axes.set_xlabel("L2 norm")
    axes.set_ylabel("share of vectors")
    axes.legend()


def _detail(inspection: Inspection, axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title("what each sketch leaves out")
    shown = {name: facts.detail for name, facts in inspection.splits.items() if facts.detail is not None}
    if not shown:
        _nothing(axes, "no children")
        return
    width = 0.8 / len(shown)
    for number, (name, detail) in enumerate(shown.items()):
        places = np.arange(len(detail)) + (number - (len(shown) - 1) / 2) * width
        axes.bar(places, detail, width, label=name, color=_COLOURS[name])
    axes.set_xlabel("capsule")
    axes.set_ylabel("RMS distance of children from the sketch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_above(axes)


def _probe(inspection: Inspection, axes: Axes) -> None:
    axes.set_title("what opening can be worth (linear probe)")
    value = inspection.expansion_value
    if value is None:
        _nothing(axes, "not measured: it needs labels\nin train and in a held-out split")
        return
    bars = {"sketches": value["sketches"], "+ checksums": value["checksums"], "+ children": value["children"]}
    known = {name: accuracy for name, accuracy in bars.items() if accuracy is not None}
    drawn = axes.bar(list(known), list(known.values()), width=0.6, color="#4477aa")
    axes.bar_label(drawn, [f"{100 * accuracy:.1f} %" for accuracy in known.values()])
    axes.axhline(value["chance"], color="#ee6677", linestyle="--", label=f"chance {100 * value['chance']:.1f} %")
    axes.set_ylabel(f"accuracy on {value['split']}, per {value['per']}")
    axes.set_ylim(0, 1)
    _legend_above(axes)


def _legend_above(axes: Axes) -> None:
    """A legend in a row over the bars, with room made for it."""
    axes.set_ylim(0, 1.2 * axes.get_ylim()[1])
    axes.legend(loc="upper center", ncols=3)


def _nothing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    axes.set_axis_off()
