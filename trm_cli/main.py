"""Entry of `trm`: registers the commands and turns every error into one line and an exit code.

The command modules are cheap to import (their heavy imports are inside the function bodies), so `trm --help` answers
at once. Each offers `command(...)` with typer annotations; `guarded` adds `--debug` and the error handling.
"""

from __future__ import annotations

import functools
import inspect
import os
import select
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from trm_cli import (
    build_capsules,
    build_puzzles,
    checkpoints,
    convert,
    diagnose,
    export,
    inspect_dataset,
    predict,
    profile,
    runs,
    serve,
    train,
)
from trm_cli import eval as evaluate
from trm_cli.commands import Built, group_of
from trm_cli.console import OUT_OF_SPACE, close_stdout, error, take_any_text
from trm_cli.processes import this_process
from trm_cli.version import print_version
from trm_core.errors import (
    NEEDS_LESS_MEMORY,
    CheckFailed,
    ExitCode,
    Interrupted,
    StoppedEarly,
    TrmError,
    is_out_of_memory,
)

DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
# What befalls all processes of a run alike, and is said by the first.
BEFALLS_ALL = {ExitCode.STOPPED_EARLY, ExitCode.INTERRUPTED, ExitCode.CONFIG, ExitCode.USAGE}


def report(exception: BaseException) -> ExitCode:
    """Say on stderr what happened, in one line (one per problem), and return the exit code for it."""
    if isinstance(exception, TrmError):
        if exception.exit_code in BEFALLS_ALL and this_process().rank:
            return exception.exit_code
        label = "error"
        if isinstance(exception, CheckFailed):
            label = "failed"
        elif isinstance(exception, (StoppedEarly, Interrupted)):
            label = "stopped"
        error(exception.message, label=label, hint=exception.hint)
        return exception.exit_code
    if isinstance(exception, KeyboardInterrupt):
        error("interrupted", label="stopped")
        return ExitCode.INTERRUPTED
    if is_out_of_memory(exception):
        error(
            f"out of memory: {_first_line(exception)}",
            hint=NEEDS_LESS_MEMORY,
        )
        return ExitCode.RESOURCES
    if _is_out_of_space(exception):
        error(f"no space left on the disk: {_first_line(exception)}", hint="free some space and run the command again")
        return ExitCode.RESOURCES
    if isinstance(exception, OSError) and exception.filename is not None:
        # The state of the disk, not of our code: a folder that may not be written, a file that is a folder.
        error(f"cannot use {exception.filename}: {exception.strerror}")
        return ExitCode.USAGE
    error(
        f"internal error: {type(exception).__name__}: {_first_line(exception)}",
        hint="this is a bug in trm: please report it with the output of the same command with --debug",
    )
    return ExitCode.INTERNAL


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with a `--debug` option, its errors reported by `report`."""
    signature = inspect.signature(command, eval_str=True)
    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=DebugOption)

    @functools.wraps(command)
    def run(*, debug: bool = False, **arguments: Any) -> None:
        try:
            command(**arguments)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise  # typer's own: usage errors end with 2
        except BrokenPipeError as exception:
            if not _stdout_is_closed():
                raise typer.Exit(_fail(exception, debug)) from exception
        except (Exception, KeyboardInterrupt) as exception:  # the one place where errors end
            raise typer.Exit(_fail(exception, debug)) from exception

    parameters = [*signature.parameters.values(), debug]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


COMMANDS: dict[str, Callable[..., None]] = {
    "build-capsules": build_capsules.command,
    "build-puzzles": build_puzzles.command,
    "inspect-dataset": inspect_dataset.command,
    "train": train.command,
    "eval": evaluate.command,
    "diagnose": diagnose.command,
    "runs": runs.command,
    "checkpoints": checkpoints.command,
    "convert": convert.command,
    "profile": profile.command,
    "export": export.command,
    "predict": predict.command,
    "serve": serve.command,
}
app = typer.Typer(
    name="trm",
    cls=group_of(Built(COMMANDS, guarded)),
    no_args_is_help=True,
    # Plain help: Rich would read "[RUN]" in a help text as markup, and costs a third of the start-up time.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print versions, devices and extras, and exit.")] = False,
    json: Annotated[bool, typer.Option("--json", help="With --version: one JSON document.")] = False,
) -> None:
    """Train, evaluate and understand recursive reasoning models that pay for the detail they look at."""
    if version:
        print_version(json)
        raise typer.Exit()
    if json:
        raise typer.BadParameter("it stands behind the command: trm COMMAND --json", param_hint="--json")
    if context.invoked_subcommand is None:
        raise typer.BadParameter("a command is missing: see trm --help")


def main() -> None:
    """Run the command line and end the process with its exit code."""
    take_any_text()
    try:
        app(prog_name="trm")
    except SystemExit as end:
        if this_process().world_size > 1:
            # Without Python's own shutdown: a thread of gloo may still have to free a tensor of the last exchange, for
            # which it needs an interpreter that lives, and else it aborts the process.
            _flush()
            os._exit(end.code if isinstance(end.code, int) else 0)
        raise
    except OSError as exception:  # of typer itself: a home in which --install-completion may not write
        sys.exit(report(exception))
    finally:
        _flush()


def _fail(exception: BaseException, debug: bool) -> int:
    if debug:
        traceback.print_exception(exception)
    return int(report(exception))


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        close_stdout()


def _first_line(exception: BaseException) -> str:
    lines = str(exception).strip().splitlines()
    return lines[0] if lines else type(exception).__name__


def _is_out_of_space(exception: BaseException) -> bool:
    """Also HDF5's, which carries the errno only in its text."""
    if not isinstance(exception, OSError):
        return False
    return exception.errno in OUT_OF_SPACE or any(f"errno = {code}," in str(exception) for code in OUT_OF_SPACE)


def _stdout_is_closed() -> bool:
    """Whether it was our stdout whose reader has left; then stdout points at nothing from now on.

    Asked of the system: after a failed write Python may have dropped what it could not write, and flushes happily.
    """
    stdout = select.poll()
    stdout.register(sys.stdout.fileno(), 0)
    closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in stdout.poll(0))
    if closed:
        close_stdout()
    return closed


if __name__ == "__main__":
    main()
