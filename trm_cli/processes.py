"""Commands that run in several cooperating processes: which process this is, and how `--nproc N` starts them."""

from __future__ import annotations

import sys
from json import loads as parse_json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from trm_cli.console import error, print_json
from trm_cli.failures import failure_unsaid
from trm_core.errors import TrmError, UsageError

if TYPE_CHECKING:
    from trm_core.distributed.place import Place
    from trm_core.training.launch import Ended


def this_process() -> Place:
    """The rank of this process and the number of processes. If the environment is contradictory, the only process; the
    command itself reports that.
    """
    from trm_core.distributed.place import Place, find_place

    try:
        return find_place()
    except TrmError:
        return Place()


def start_processes(
    nproc: int, json: bool, *, arguments: list[str] | None = None, run: Path | None = None, hint: str | None = None
) -> None:
    """Start this command in N processes, optionally with other arguments. `run`: the run that they train; hint: what to
    do if one was killed. Raises typer.Exit with the exit code if something went wrong, and UsageError in a process that
    is one of several already: each would start a group, and these would train the same run.
    """
    place = this_process()
    if place.world_size > 1:
        raise UsageError(f"--nproc: this is {place.why}", hint="leave --nproc out, or start this command once")
    from trm_core.training.launch import launch, without_nproc

    arguments = without_nproc(sys.argv[1:]) if arguments is None else arguments
    ended = launch(nproc, "trm_cli.main", arguments, run, keep_stdout=json)
    if ended.message is not None:
        error(ended.message, hint=hint)
    if json:
        _print_one_document(ended, hint)
    if ended.code:
        raise typer.Exit(ended.code)


def _print_one_document(ended: Ended, hint: str | None) -> None:
    """Print the document of process 0; if that died before printing it, what is known here."""
    try:
        print_json(parse_json(ended.printed))
    except ValueError:
        if ended.code:
            failure_unsaid(ended.code, ended.message, hint).print_document()
