"""The one registry of logged names: what each means, its unit, and when it is healthy.

`trm diagnose` and the docs read it, so it imports neither torch nor anything else heavy.

    python -m trm_core.training.metric_registry docs > docs/metrics.md
    python -m trm_core.training.metric_registry readme      # the table between the markers in README.md
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from itertools import groupby

from trm_core.markdown import table
from trm_core.training.metric_list import ALL, ESSENTIAL, REFERENCES, Metric, Range

METRICS: dict[str, Metric] = {metric.name: metric for metric in ALL}
README_MARKERS = ("<!-- metrics:begin -->", "<!-- metrics:end -->")

_PLACEHOLDER = re.compile(r"<(\w+)>")
_NUMBERS = ("n", "depth")


def _pattern(name: str) -> re.Pattern[str]:
    """Matches the names of a family's members."""
    pieces = _PLACEHOLDER.split(name)  # text, placeholder, text, ..., text
    parts = [
        (f"(?P<{piece}>[0-9]+)" if piece in _NUMBERS else rf"(?P<{piece}>[\w.]+)") if index % 2 else re.escape(piece)
        for index, piece in enumerate(pieces)
    ]
    return re.compile("".join(parts))


_FAMILIES = [(_pattern(metric.name), metric) for metric in ALL if "<" in metric.name]


def describe(name: str) -> Metric | None:
    """The entry of a logged name, with a family's placeholders filled in; None for a name that is not registered."""
    if "<" not in name and name in METRICS:
        return METRICS[name]
    for pattern, family in _FAMILIES:
        match = pattern.fullmatch(name)
        if match and (not family.members or name in family.members):
            meaning = family.meaning
            for placeholder, text in match.groupdict().items():
                meaning = meaning.replace(f"<{placeholder}>", text)
            return replace(family, name=name, meaning=meaning, members=())
    return None


def healthy_text(healthy: Range | None) -> str:
    """A range in words, without its note."""
    if healthy is None:
        return ""
    of = REFERENCES[healthy.of].label if healthy.of in REFERENCES else f"`{healthy.of}`"
    words = (("above", healthy.above), ("at least", healthy.low), ("at most", healthy.high))
    bounds = [(word, bound) for word, bound in words if bound is not None]
    if len(bounds) == 2:
        text = "0" if healthy.low == healthy.high == 0 else f"{healthy.low:.3g} to {healthy.high:.6g}"
    else:
        [(word, bound)] = bounds
        if healthy.of and bound == 1:
            return f"{word} {of}"
        text = f"{word} {bound:.6g}"
    return f"{text} times {of}" if healthy.of else text


def _meaning(metric: Metric) -> str:
    # Bare <words> would be taken for HTML.
    text = _PLACEHOLDER.sub(r"`<\1>`", metric.meaning)
    return text + (": " + ", ".join(f"`{name}`" for name in metric.members) if metric.members else "")


def docs_page() -> str:
    """The content of docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "<!-- Generated: python -m trm_core.training.metric_registry docs > docs/metrics.md -->",
        "",
        "Every number in `metrics.jsonl` (and TensorBoard, and Weights & Biases). Unless the meaning says otherwise, a",
        "line holds the mean since the line before it; *now* means the value at that step. A name appears only while",
        "the part it belongs to is on. Healthy ranges are what `trm diagnose` compares with. The note says when a",
        "range holds and where it comes from: *pipeline.md* is the specification that this project implements, *ours*",
        "marks what the project added. Bounds may be multiples of a config key, of another metric, or of:",
        "",
        *(f"- *{reference.label}*: {reference.meaning}" for reference in REFERENCES.values()),
    ]
    for title, metrics in groupby(ALL, key=lambda metric: metric.group):
        rows = [
            (
                f"`{metric.name}`",
                _meaning(metric),
                metric.unit,
                healthy_text(metric.healthy),
                metric.healthy.note if metric.healthy else "",
            )
            for metric in metrics
        ]
        lines += ["", f"## {title}", "", *table(("name", "meaning", "unit", "healthy", "note"), rows)]
    return "\n".join(lines) + "\n"


def readme_table() -> str:
    """The table between the markers in README.md."""
    rows = [
        (f"`{metric.name}`", _meaning(metric), metric.unit, healthy_text(metric.healthy))
        for metric in (METRICS[name] for name in ESSENTIAL)
    ]
    # No number of metrics: a new one would make every README out of date.
    link = "All metrics, with notes: [docs/metrics.md](docs/metrics.md)."
    return "\n".join([*table(("name", "meaning", "unit", "healthy"), rows), "", link]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the generated tables of metrics.")
    parser.add_argument("what", choices=["docs", "readme"])
    print(docs_page() if parser.parse_args().what == "docs" else readme_table(), end="")


if __name__ == "__main__":
    main()
