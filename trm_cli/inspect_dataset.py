"""`trm inspect-dataset FILE`: what a capsule file or a puzzle folder holds, what opening capsules can be worth, and
what is wrong: damage, and the findings of those `trm diagnose` checks that need only data.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trm_cli.config_options import IgnoreOption, JsonOption
from trm_cli.findings import as_json, conclude, failed
from trm_cli.inspect_puzzles import inspect_puzzle_folder
from trm_core.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from trm_core.data.inspect import Inspection, SplitFacts

_MAX_CLASSES = 20


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A capsule file, puzzle folder, or legacy .pt file.")],
    split: Annotated[
        str | None, typer.Option("--split", metavar="SPLIT", help="Show labels and norms of this split only.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="IMAGE", help="Also draw labels, norms, detail and probe (png, svg, pdf)."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only print the tables and report damage; skip the checks.")
    ] = False,
    ignore: IgnoreOption = None,
    json: JsonOption = False,
) -> None:
    """Look at a capsule file or a puzzle folder: shapes, labels, checksums, what EXPAND can gain, what is wrong
    (duplicates across splits, leaked or shuffled labels, splits that differ, ...), and how to fix it.

    Ends with code 1 if something is wrong inside the file, 4 if it cannot be opened.
    """
    from trm_cli.console import log, print_json
    from trm_cli.progress import progress

    if file.is_dir():
        if plot is not None:
            raise UsageError(f"--plot {plot}: there is nothing to draw for puzzles", hint="leave --plot out")
        inspect_puzzle_folder(file, split, quick, ignore or [], json)
        return

    from trm_core.data.inspect import inspect_dataset
    from trm_core.diagnose.of_data import checks_of_capsules
    from trm_core.diagnose.registry import OF_DATA, without

    if plot is not None and plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot {plot}: expected a .png, .svg or .pdf file")
    checks = without(OF_DATA, ignore or [])
    with progress("reading") as bar:

        def report(stage: str, done: int, total: int) -> None:
            bar.update(done, total=total or None, label=stage)

        inspection = inspect_dataset(file, split=split, progress=report)
        found = [] if quick else checks_of_capsules(inspection, report, checks)
    if plot is not None:
        from trm_core.data.inspect_plot import plot_inspection

        plot_inspection(inspection, plot)
        log(f"wrote {plot}")
    if json:
        print_json(inspection.to_dict() | {"checks": [as_json(one) for one in found]})
    else:
        _print(inspection)
        conclude(found, bool(inspection.problems), quick)
    wrong = [*inspection.problems, *filter(None, [failed(found)])]
    if wrong:
        hint = "build the file again from its source" if inspection.problems else None
        raise CheckFailed("\n".join(wrong), hint=hint)


def _print(inspection: Inspection) -> None:
    from trm_cli.console import out, table
    from trm_core.data.probe import in_words

    manifest = inspection.manifest
    table(
        str(inspection.path),
        ["", ""],
        [
            ("kind", f"{inspection.kind}" + (f": {manifest['kind_reason']}" if manifest.get("kind_reason") else "")),
            ("encoder", manifest.get("encoder")),
            ("sources", _paths(manifest.get("sources"))),
            ("made by", f"trm {manifest['tool_version']}" if manifest.get("tool_version") else None),
            ("size", f"{inspection.bytes / 1e6:.1f} MB"),
            (
                "capsules",
                f"k = {inspection.num_capsules}, m = {inspection.num_children}, D = {inspection.dim}, "
                f"R = {inspection.checksum_dim}",
            ),
            ("target", f"{inspection.task}, {inspection.num_classes} ids"),
            ("has", ", ".join(name for name, there in inspection.capabilities.items() if there)),
            ("has not", ", ".join(name for name, there in inspection.capabilities.items() if not there)),
        ],
    )
    table(
        "fields",
        ["name", "shape", "dtype", "MB"],
        [
            (name, " x ".join(map(str, facts["shape"])), facts["dtype"], f"{facts['bytes'] / 1e6:.2f}")
            for name, facts in inspection.fields.items()
        ],
    )
    table(
        "splits",
        ["split", "samples", "repeated", "chance", "norm of sketches", "norm of children"],
        [
            (
                name,
                facts.rows,
                facts.repeated,
                None if facts.chance is None else f"{100 * facts.chance:.1f}%",
                _range(facts, "sketches"),
                _range(facts, "children"),
            )
            for name, facts in inspection.splits.items()
        ],
    )
    for pair, count in inspection.across_splits.items():
        first, second = pair.split("/")
        out(f"{count} samples of {second} also occur in {first}")
    _print_labels(inspection)
    for line in in_words(inspection.expansion_value):
        out(line)
    for note in inspection.notes:
        out(f"note: {note}")


def _print_labels(inspection: Inspection) -> None:
    from trm_cli.console import table

    totals: dict[int, int] = {}
    for facts in inspection.splits.values():
        for label, count in facts.labels.items():
            totals[label] = totals.get(label, 0) + count
    if not totals:
        return
    order = sorted(totals, key=lambda label: (-totals[label], label))
    names = inspection.class_names
    rows = [
        (
            names[label] if names and 0 <= label < len(names) else label,
            *(facts.labels.get(label, 0) for facts in inspection.splits.values()),
        )
        for label in (order[:_MAX_CLASSES] if len(order) > _MAX_CLASSES else sorted(order))
    ]
    ignored = [facts.ignored for facts in inspection.splits.values()]
    if any(ignored):
        rows.append(("(ignored)", *ignored))
    shown = f"the {_MAX_CLASSES} most frequent of {len(order)}" if len(order) > _MAX_CLASSES else str(len(order))
    table(f"labels ({shown})", ["label", *inspection.splits], rows)


def _paths(sources: object) -> str | None:
    """The source paths in a manifest. It may come from a stranger, so entries of unexpected form are not shown."""
    entries = sources if isinstance(sources, list) else []
    return ", ".join(str(entry.get("path")) for entry in entries if isinstance(entry, dict)) or None


def _range(facts: SplitFacts, name: str) -> str | None:
    if name not in facts.norms:
        return None
    mean, low, high = facts.norms[name]
    return f"{mean:.3g} ({low:.3g} to {high:.3g})"
