"""Commands in several processes that work together: which one this is, and `--nproc N` where there is no run."""

from __future__ import annotations

import sys
from json import loads as parse_json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from trm_cli.console import error, print_json
from trm_cli.failures import failure_unsaid
from trm_core.errors import TrmError

if TYPE_CHECKING:
    from trm_core.distributed.place import Place
    from trm_core.training.launch import Ended


def this_process() -> Place:
    """Which one this is of how many; the only one where the environment contradicts itself: the command says so."""
    from trm_core.distributed.place import Place, find_place

    try:
        return find_place()
    except TrmError:
        return Place()


def start_processes(
    nproc: int, json: bool, *, arguments: list[str] | None = None, run: Path | None = None, hint: str | None = None
) -> None:
    """Start this command N times, or one with other arguments; `run`: what they train. Raises typer.Exit with the code
    of what went wrong. hint: the mend where one was killed.
    """
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
    """Process 0's, whole as it is; where that one did not live to print it, what is known here."""
    try:
        print_json(parse_json(ended.printed))
    except ValueError:
        if ended.code:
            failure_unsaid(ended.code, ended.message, hint).print_document()
