"""`trm build-capsules SOURCE... --out FILE`: turn raw text, images, grids, tables or arrays into one capsule file."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trm_cli.build_options import as_overrides, caught_signals, load, sources_and_overrides, stages
from trm_cli.config_options import ConfigOption, JsonOption
from trm_core.errors import Interrupted, StoppedEarly, UsageError

if TYPE_CHECKING:
    from trm_core.data.build.report import BuildReport

_STAGES = {"scan": "reading", "fit": "fitting", "encode": "encoding", "write": "writing", "probe": "measuring"}


def command(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Files or folders, or the word digits (those of scikit-learn). KEY=VALUE among them overrides the "
            "config, e.g. data.build.num_concepts=64.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The capsule file to write.")] = None,
    config: ConfigOption = None,
    kind: Annotated[
        str | None,
        typer.Option("--kind", help="digits, images, text, arc, table, arrays or legacy; default: detected."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="COLUMN", help="Column or array with the labels; none: build without labels."),
    ] = None,
    text: Annotated[str | None, typer.Option("--text", metavar="COLUMN", help="Column of the text.")] = None,
    num_capsules: Annotated[
        int | None, typer.Option("--num-capsules", metavar="K", help="Capsules per sample.")
    ] = None,
    num_children: Annotated[
        int | None, typer.Option("--num-children", metavar="M", help="Children per capsule.")
    ] = None,
    dim: Annotated[int | None, typer.Option("--dim", metavar="D", help="Width of sketches and children.")] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            help="pixels, patch-pca, tfidf-svd, hashing-svd, columns or none; pretrained: "
            "sentence-transformers, timm or open_clip.",
        ),
    ] = None,
    encoder_model: Annotated[
        str | None,
        typer.Option(
            "--encoder-model", metavar="MODEL", help="Pretrained encoders: a model's name, or the path of a local one."
        ),
    ] = None,
    encoders_of: Annotated[
        str | None,
        typer.Option(
            "--encoders-of",
            metavar="FILE",
            help="Use the encoders of this file, to evaluate a model trained on it; all rows become the split test.",
        ),
    ] = None,
    sketch: Annotated[
        str | None, typer.Option("--sketch", help="mean, leading or none: what the coarse view keeps.")
    ] = None,
    sketch_dims: Annotated[
        int | None, typer.Option("--sketch-dims", help="Dimensions that --sketch leading keeps; default: a quarter.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of splits, projections and encoders.")] = None,
    validation: Annotated[float | None, typer.Option("--validation", help="Share of samples for validation.")] = None,
    test: Annotated[float | None, typer.Option("--test", help="Share of samples for the final test.")] = None,
    folds: Annotated[int | None, typer.Option("--folds", help="Cross-validation: number of folds.")] = None,
    fold: Annotated[int | None, typer.Option("--fold", help="Which fold is the test split, from 0.")] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Resize pictures to a square with this side, in pixels.")
    ] = None,
    augment_shift: Annotated[
        int | None,
        typer.Option("--augment-shift", metavar="P", help="Add training pictures shifted by up to P pixels."),
    ] = None,
    augment_warps: Annotated[
        int | None,
        typer.Option(
            "--augment-warps", metavar="N", help="Add N slightly rotated and stretched copies per training picture."
        ),
    ] = None,
    augment_grids: Annotated[
        int | None,
        typer.Option(
            "--augment-grids", metavar="N", help="Add N rotated and recoloured copies per training pair of grids."
        ),
    ] = None,
    groups: Annotated[
        list[str] | None,
        typer.Option("--group", metavar="NAME=COL,COL", help="Columns of a table that form one capsule; repeatable."),
    ] = None,
    prices: Annotated[
        list[str] | None, typer.Option("--price", metavar="NAME=PRICE", help="Price of opening a group; repeatable.")
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes that encode; 0: only this one.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
    json: JsonOption = False,
) -> None:
    """Build a capsule file from raw data: text, images, ARC grids, tables or arrays.

    The kind is detected and printed with the reason. A stopped build continues when the command is run again.
    """
    from trm_cli.console import log, print_json
    from trm_core.data.build.pipeline import build_capsules

    flags = {
        "kind": kind,
        "label": label,
        "text": text,
        "num_capsules": num_capsules,
        "num_children": num_children,
        "dim": dim,
        "encoder": encoder,
        "encoder_model": encoder_model,
        "encoders_of": encoders_of,
        "sketch": sketch,
        "sketch_dims": sketch_dims,
        "seed": seed,
        "validation": validation,
        "test": test,
        "folds": folds,
        "fold": fold,
        "image_size": image_size,
        "augment_shift": augment_shift,
        "augment_warps": augment_warps,
        "augment_grids": augment_grids,
        "groups": {name: columns.split(",") for name, columns in _pairs("--group", groups).items()} or None,
        "prices": {name: _price(name, price) for name, price in _pairs("--price", prices).items()} or None,
        "workers": workers,
    }
    paths, overrides = sources_and_overrides(sources or [])
    data = load("build", config, [*as_overrides("build", flags), *overrides]).config.data
    if not paths and data.source is not None:
        paths = [data.source]
    if out is None:
        raise UsageError("no output given", hint="name the file to write with --out FILE")
    with stages(_STAGES) as stage, _stop_flag() as stop:
        report = build_capsules(paths, out, data.build, progress=stage, overwrite=overwrite, log=log, should_stop=stop)
    if json:
        print_json(report.to_dict())
    else:
        _print_report(report)


def _print_report(report: BuildReport) -> None:
    from trm_cli.console import out, table
    from trm_core.data.probe import in_words

    detail = (
        f"{report.num_children} children of {report.dim}"
        if report.num_children
        else f"sketches of {report.dim}, no children"
    )
    target = f"{report.num_classes} classes"
    if report.task == "concepts":
        target = f"{report.num_classes - 4} concepts (one per capsule)"
    table(
        str(report.path),
        ["", ""],
        [
            ("kind", f"{report.kind}: {report.reason}"),
            ("encoder", report.encoder),
            ("samples", ", ".join(f"{split} {count}" for split, count in report.counts.items())),
            ("capsules", f"{report.num_capsules} per sample, {detail}, checksums of {report.checksum_dim}"),
            ("target", target),
            ("duplicates", f"{report.duplicates} in the source, none across splits"),
            ("size", f"{report.bytes / 1e6:.1f} MB"),
            ("time", f"{report.seconds:.1f} s"),
        ],
    )
    for line in in_words(report.expansion_value):
        out(line)


def _pairs(option: str, values: Sequence[str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values or ():
        name, sign, rest = value.rpartition("=") if option == "--price" else value.partition("=")
        if not sign or not name or not rest:
            raise UsageError(f"{option} {value}: expected NAME=...")
        if name in found:
            raise UsageError(f"{option} {name}: given twice")
        found[name] = rest
    return found


def _price(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"--price {name}={value}: expected a number") from None


@contextmanager
def _stop_flag() -> Iterator[Callable[[], bool]]:
    """Stop at SIGTERM or SIGINT after the current chunk; a second Ctrl-C stops at once (also resumable)."""
    with caught_signals() as caught:
        try:
            yield lambda: bool(caught)
        except StoppedEarly as error:
            if caught[0] == signal.SIGINT:
                raise Interrupted(error.message, hint=error.hint) from None
            raise
