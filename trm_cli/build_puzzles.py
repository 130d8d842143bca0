"""`trm build-puzzles KIND [SOURCE...] --out FOLDER`: Sudokus, mazes or ARC tasks to a folder of puzzles."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trm_cli.config_options import ConfigOption, JsonOption, PrintConfigOption
from trm_core.errors import Interrupted, StoppedEarly, UsageError

if TYPE_CHECKING:
    from trm_core.config import LoadedConfig
    from trm_core.data.puzzles.build.report import BuiltPuzzles

_STAGES = {"generate": "generating", "read": "reading", "check": "checking", "write": "writing"}


def command(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="sudoku, maze or arc.", show_default=False)],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="Files, or folders with train.csv and test.csv; without one Sudokus and mazes are generated. "
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
        int | None, typer.Option("--subsample", metavar="N", help="Draw N training puzzles out of all.")
    ] = None,
    min_path: Annotated[
        int | None, typer.Option("--min-path", metavar="N", help="Mazes: cells of the shortest way at least.")
    ] = None,
    clues: Annotated[
        int | None, typer.Option("--clues", metavar="N", help="Sudokus: given cells; default: as few as possible.")
    ] = None,
    test_subset: Annotated[
        str | None, typer.Option("--test-subset", metavar="NAME", help="ARC: whose test pairs are held out.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of puzzles, splits and copies.")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes that generate and check; 0: this.")
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
    paths, overrides = _apart(sources or [])
    loaded = _load(config, [*_overrides(flags), *overrides])
    if print_config:
        show_config(loaded, json)
        return
    if out is None:
        raise UsageError("no output given", hint="name the folder to write with --out FOLDER")
    with _stages() as progress:
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


def _load(config: Path | None, overrides: Sequence[str]) -> LoadedConfig:
    """A training config, or a file that holds nothing but the keys of data.puzzles."""
    from trm_cli.config_options import load_from_cli
    from trm_core.config import load_config_dict
    from trm_core.config.schema import PuzzleBuildConfig
    from trm_core.config.yaml_loader import read_document

    if config is not None:
        values = read_document(config).data
        if values and set(values) <= set(PuzzleBuildConfig.model_fields):
            return load_config_dict({"data": {"puzzles": values}}, overrides, name=str(config))
    return load_from_cli(config, overrides)


def _overrides(flags: dict[str, Any]) -> list[str]:
    # As JSON, which YAML reads back with the same types.
    return [f"data.puzzles.{name}={json_module.dumps(value)}" for name, value in flags.items() if value is not None]


def _apart(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sources and dotted overrides, which come in one list."""
    paths: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        key, sign, _ = argument.partition("=")
        is_override = bool(sign) and key.startswith("data.") and not Path(argument).exists()
        (overrides if is_override else paths).append(argument)
    return paths, overrides


@contextmanager
def _stages() -> Iterator[Callable[[str, int, int], None]]:
    """A progress callback that shows one stage after another, and stops the build after SIGTERM or SIGINT.

    A second Ctrl-C stops at once.
    """
    import signal

    from trm_cli.progress import progress

    caught: list[int] = []

    def remember(number: int, frame: object) -> None:
        caught.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with progress("reading") as bar:

            def show(stage: str, done: int, total: int) -> None:
                bar.update(done, total=total or None, label=_STAGES.get(stage, stage))
                if caught:
                    kind = Interrupted if caught[0] == signal.SIGINT else StoppedEarly
                    raise kind("nothing was written", hint="run the same command again for the same puzzles")

            yield show
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
