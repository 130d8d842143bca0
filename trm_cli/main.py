"""Entry point of `trm`: registers the commands and turns every error into a message and an exit code.

Command modules are cheap to import (heavy imports are inside function bodies), so `trm --help` answers at once. Each
provides `command(...)` with typer annotations; `guarded` adds `--debug` and error handling.
"""

from __future__ import annotations

import functools
import gc
import inspect
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from trm_cli import (
    build_capsules,
    build_puzzles,
    checkpoints,
    console,
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
from trm_cli.failures import BEFALLS_ALL, failure_of, usage_failure
from trm_cli.processes import this_process
from trm_cli.streams import close_stdout, prepare_streams, stdout_is_closed
from trm_cli.version import print_version
from trm_core.errors import ExitCode, TrmError, UsageError

DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with a `--debug` option, and its errors reported through `trm_cli.failures`."""
    signature = inspect.signature(command, eval_str=True)
    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=DebugOption)

    @functools.wraps(command)
    def run(*, debug: bool = False, **arguments: Any) -> None:
        before = console.documents_printed

        def fail(exception: BaseException) -> typer.Exit:
            # If the command failed after printing its result, it has already printed the document --json promises.
            document = bool(arguments.get("json")) and console.documents_printed == before
            return typer.Exit(_fail(exception, debug, document))

        try:
            command(**arguments)
        except (typer.Exit, typer.Abort):
            raise
        except typer.BadParameter as wrong:  # a usage error, which typer reports
            if arguments.get("json") and this_process().rank == 0:
                usage_failure(wrong.message).print_document()
            raise
        except BrokenPipeError as exception:
            if not stdout_is_closed():
                raise fail(exception) from exception
        except (Exception, KeyboardInterrupt) as exception:  # the only place that catches every error
            raise fail(exception) from exception

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
    # Plain help: Rich would read "[RUN]" in a help text as markup, and takes a third of the start-up time.
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
        raise typer.BadParameter("it goes after the command: trm COMMAND --json", param_hint="--json")
    if context.invoked_subcommand is None:
        raise typer.BadParameter("a command is missing: see trm --help")


def main() -> None:
    """Run the command line and end the process with its exit code."""
    prepare_streams()
    # Looking through all installed packages for plugins of pydantic takes some 40 ms; nothing here uses one.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        _look_around()
        app(prog_name="trm")
    except SystemExit as end:
        if end.code in (ExitCode.STOPPED_EARLY, ExitCode.INTERRUPTED):
            from trm_core.child_process import STOP_SIGNALS

            # It stops as requested. A second signal must not change the exit code while Python shuts down.
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
        if this_process().world_size > 1:
            # Skip Python's own shutdown: a gloo thread may still have to free a tensor of the last exchange. That needs
            # a live interpreter; without one the process would abort.
            _flush()
            os._exit(end.code if isinstance(end.code, int) else 0)
        raise
    except (OSError, TrmError) as exception:  # also from typer: --install-completion without write access to the home
        sys.exit(_fail(exception, debug=False, document=False))
    finally:
        _flush()
        gc.freeze()  # Python would look through all that was imported, several times, before it ends


def _look_around() -> None:
    """Raise UsageError if the current folder was removed, since libraries would crash. Make child processes find
    modules where this one does: not in the current folder, which may be a stranger's and contain a json.py.
    """
    try:
        here = os.getcwd()
    except FileNotFoundError as error:
        raise UsageError("the current folder was removed", hint="cd to one that exists") from error
    if here not in sys.path and "" not in sys.path:
        os.environ["PYTHONSAFEPATH"] = "1"


def _fail(exception: BaseException, debug: bool, document: bool) -> int:
    """Report what happened, only once if it hits all processes of a run, and return the exit code."""
    if debug:
        traceback.print_exception(exception)
    failure, first = failure_of(exception), this_process().rank == 0
    elsewhere = exception.told_by_another if isinstance(exception, TrmError) else False
    if elsewhere is None:
        elsewhere = failure.code in BEFALLS_ALL and not first
    if not elsewhere:
        failure.tell()
    if document and first:
        failure.print_document()
    return int(failure.code)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        close_stdout()


if __name__ == "__main__":
    main()
