"""`trm runs`: many runs in one table, with the config keys in which they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trm_cli.config_options import JsonOption
from trm_cli.console import clean, fits, log, out, print_json, table

if TYPE_CHECKING:
    from trm_core.overview import RunSummary

MOST_KEYS = 6  # config keys shown as columns


def command(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER", help="Folders of runs, or run directories; default: runs/."),
    ] = None,
    sort: Annotated[
        Literal["newest", "accuracy"], typer.Option(help="Which run comes first: the newest, or the most accurate.")
    ] = "newest",
    json: JsonOption = False,
) -> None:
    """List runs: state, steps, accuracy with its 95 % interval, cost, and the config keys by which they differ.

    Example: trm runs runs/seed* --sort accuracy

    Ends with code 4 if there are none. Problems with single runs are listed below the table.
    """
    from trm_core.overview import by_accuracy, differing_keys, find_runs, summarise

    paths, notes = find_runs(folders or [Path("runs")])
    for note in notes:
        log(note)
    runs = summarise(paths)
    if sort == "accuracy":
        runs = by_accuracy(runs)
    keys = differing_keys(runs)
    if json:
        print_json({"runs": [_record(run, keys) for run in runs], "differ": keys})
    else:
        _print(runs, keys)


def _record(run: RunSummary, keys: Sequence[str]) -> dict[str, Any]:
    own = None if run.config is None else {key: run.config[key] for key in keys}
    return {"run": run.path, **{name: value for name, value in vars(run).items() if name != "path"}, "config": own}


def _print(runs: Sequence[RunSummary], keys: Sequence[str]) -> None:
    rows = [_cells(run) for run in runs]
    columns, lines = list(rows[0]), [list(row.values()) for row in rows]
    shown = list(keys[:MOST_KEYS])
    if fits([*columns, *shown], _beside(lines, runs, shown)):
        table(_title(runs), [*columns, *shown], _beside(lines, runs, shown))
    else:
        table(_title(runs), columns, lines)
        names = [line[:1] for line in lines]
        while len(shown) > 1 and not fits([columns[0], *shown], _beside(names, runs, shown)):
            shown.pop()
        if shown:
            table("what they differ in", [columns[0], *shown], _beside(names, runs, shown))
    for note in _notes(runs, keys[len(shown) :]):
        out(clean(note))


def _beside(lines: Sequence[Sequence[str]], runs: Sequence[RunSummary], keys: Sequence[str]) -> list[list[str]]:
    """Each run's row, followed by its values of these config keys."""
    from trm_core.config.dump import dump_value

    return [
        [*line, *("-" if run.config is None else dump_value(run.config[key]) for key in keys)]
        for line, run in zip(lines, runs, strict=True)
    ]


def _title(runs: Sequence[RunSummary]) -> str:
    policies = sorted({run.evaluated.policy for run in runs if run.evaluated and run.evaluated.policy})
    of = f"; accuracy and cost of {', '.join(policies)}" if policies else ""
    return f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}{of}"


def _notes(runs: Sequence[RunSummary], unshown: Sequence[str]) -> Iterator[str]:
    if any(run.puzzles and run.result for run in runs):
        yield "for puzzles, the accuracy is the share that are right as a whole"
    if any(run.evaluated is None and run.best_logged for run in runs):
        yield "~: not evaluated yet: the best accuracy during training, on at most 1,000 rows"
    if unshown:
        more = f" and {len(unshown) - MOST_KEYS} more keys (--json)" if len(unshown) > MOST_KEYS else ""
        yield f"they also differ in {', '.join(unshown[:MOST_KEYS])}{more}"
    for run in runs:
        if run.evaluated and run.evaluated.step != run.step:
            yield f"{run.path}: evaluated at step {run.evaluated.step}"
        yield from run.faults


def _cells(run: RunSummary) -> dict[str, str]:
    """A row of the table, by column."""
    found = run.result
    return {
        "run": str(run.path),
        "state": run.state,
        "trained": "-" if run.step is None else f"{run.step}/{'?' if run.total_steps is None else run.total_steps}",
        "min": _shown(run.minutes, 1),
        "accuracy %": "-" if found is None else f"{'' if run.evaluated else '~'}{100 * found.accuracy:.2f}",
        "95 %": "-"
        if found is None or found.low is None or found.high is None
        else f"{100 * found.low:.1f}-{100 * found.high:.1f}",
        "opened": _shown(None if found is None or run.puzzles else found.opened, 2),
        "steps": _shown(None if found is None else found.steps, 2),
    }


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
