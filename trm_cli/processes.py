"""Commands in several processes that work together: which one this is, and `--nproc N` where there is no run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from trm_cli.console import error
from trm_core.errors import TrmError

if TYPE_CHECKING:
    from trm_core.distributed.place import Place


def this_process() -> Place:
    """Which one this is of how many; the only one where the environment contradicts itself: the command says so."""
    from trm_core.distributed.place import Place, find_place

    try:
        return find_place()
    except TrmError:
        return Place()


def start_processes(nproc: int) -> None:
    """Start this command N times. Raises typer.Exit with the code of what went wrong."""
    from trm_core.training.launch import launch, without_nproc

    code, message = launch(nproc, "trm_cli.main", without_nproc(sys.argv[1:]))
    if message is not None:
        error(message)
    if code:
        raise typer.Exit(code)
