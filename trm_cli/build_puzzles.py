"""`trm build-puzzles KIND [SOURCE...] --out FOLDER`: turn Sudokus, mazes or ARC tasks into a folder of puzzles."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trm_cli.build_options import as_overrides, caught_signals, load, sources_and_overrides, stages
from trm_cli.config_options import ConfigOption, JsonOption, PrintConfigOption
from trm_core.errors import Interrupted, StoppedEarly, UsageError

if TYPE_CHECKING:
    from trm_core.data.puzzles.build.report import BuiltPuzzles

_STAGES = {"generate": "generating", "read": "reading", "check": "checking", "write": "writing"}


def command(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="sudoku, maze or arc.", show_default=False)],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Files, or folders with train.csv and test.csv; without a source, Sudokus and mazes are generated. "
            "KEY=VALUE among them overrides the config, e.g. data.puzzles.clues=30.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="The folder to write.")] = None,
    config: ConfigOption = None,
    augmentations: Annotated[
        int | None, typer.Option("--augmentations", metavar="N", help="Symmetric copies per training puzzle.")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", metavar="N", help="Puzzles to generate; default 1000.")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", metavar="N", help="Side of generated grids: 4, 6 or 9; mazes: 30.")
    ] = None,
    test_source: Annotated[
        str | None, typer.Option("--test-source", metavar="FILE", help="Held-out puzzles; default: a tenth of all.")
    ] = None,
    subsample: Annotated[
        int | None, typer.Option("--subsample", metavar="N", help="Keep only N training puzzles, drawn at random.")
    ] = None,
    min_path: Annotated[
        int | None, typer.Option("--min-path", metavar="N", help="Mazes: least length of the shortest path, in cells.")
    ] = None,
    clues: Annotated[
        int | None,
        typer.Option("--clues", metavar="N", help="Sudokus: number of given cells; default: as few as possible."),
    ] = None,
    test_subset: Annotated[
        str | None, typer.Option("--test-subset", metavar="NAME", help="ARC: the subset whose test pairs are held out.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of puzzles, splits and copies.")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes that generate and check; 0: only this one.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FOLDER if it holds puzzles.")] = False,
    print_config: PrintConfigOption = False,
    json: JsonOption = False,
) -> None:
    """Build a folder of puzzles for training, in the layout of the TRM and HRM code.

    No puzzle of the test split is a training puzzle or a symmetric copy of one. The same seed makes the same folder.
    """
    from trm_cli.config_options import print_config as show_config
    from trm_cli.console import log, print_json
    from trm_core.data.puzzles.build.kinds import build_puzzles

    flags = {
        "augmentations": augmentations,
        "count": count,
        "size": size,
        "test_source": test_source,
        "subsample": subsample,
        "min_path": min_path,
        "clues": clues,
        "test_subset": test_subset,
        "seed": seed,
        "workers": workers,
    }
    paths, overrides = sources_and_overrides(sources or [])
    loaded = load("puzzles", config, [*as_overrides("puzzles", flags), *overrides])
    if print_config:
        show_config(loaded, json)
        return
    if out is None:
        raise UsageError("no output given", hint="name the folder to write with --out FOLDER")
    with _stoppable_stages() as progress:
        built = build_puzzles(
            kind, paths, out, loaded.config.data.puzzles, progress=progress, log=log, overwrite=overwrite
        )
    if json:
        print_json(built.to_dict())
    else:
        _print_report(built)


def _print_report(built: BuiltPuzzles) -> None:
    from trm_cli.console import out, table

    rows = [(name, counts.groups, counts.puzzles, counts.examples) for name, counts in built.splits.items()]
    table(f"{built.path}: {built.kind}", ["split", "groups", "puzzles", "examples"], rows)
    for note in built.notes:
        out(f"note: {note}")


@contextmanager
def _stoppable_stages() -> Iterator[Callable[[str, int, int], None]]:
    """A progress callback that stops the build after SIGTERM or SIGINT, keeping nothing of it."""
    with caught_signals() as caught, stages(_STAGES) as show:

        def show_or_stop(stage: str, done: int, total: int) -> None:
            show(stage, done, total)
            if caught:
                kind = Interrupted if caught[0] == signal.SIGINT else StoppedEarly
                raise kind("nothing was written", hint="run the same command again for the same puzzles")

        yield show_or_stop
