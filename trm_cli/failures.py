"""How a command that raised ends: its exit code, the lines on stderr and, with `--json`, the document."""

from __future__ import annotations

from dataclasses import dataclass

from trm_cli.console import OUT_OF_SPACE, error, print_json
from trm_core.errors import (
    DISK_FAILS,
    NEEDS_LESS_MEMORY,
    CheckFailed,
    ExitCode,
    Interrupted,
    StoppedEarly,
    TrmError,
    is_out_of_memory,
)

# Failures that hit all processes of a run alike, so only the first one reports them.
BEFALLS_ALL = {ExitCode.STOPPED_EARLY, ExitCode.INTERRUPTED, ExitCode.CONFIG, ExitCode.USAGE}


@dataclass(frozen=True)
class Failure:
    """How a command failed. `label`: error, failed (a check failed) or stopped."""

    code: int
    message: str
    hint: str | None = None
    label: str = "error"

    def tell(self) -> None:
        """Print it on stderr, line by line."""
        error(self.message, label=self.label, hint=self.hint)

    def print_document(self) -> None:
        """Print it as JSON, in place of the result that `--json` promises."""
        print_json({"exit_code": int(self.code), "status": self.label, "message": self.message, "hint": self.hint})


def failure_of(exception: BaseException) -> Failure:
    """What an exception that ends a command means to the user."""
    if isinstance(exception, TrmError):
        label = "error"
        if isinstance(exception, CheckFailed):
            label = "failed"
        elif isinstance(exception, (StoppedEarly, Interrupted)):
            label = "stopped"
        return Failure(exception.exit_code, exception.message, exception.hint, label)
    if isinstance(exception, KeyboardInterrupt):
        return Failure(ExitCode.INTERRUPTED, "interrupted", label="stopped")
    if is_out_of_memory(exception):
        return Failure(ExitCode.RESOURCES, f"out of memory: {_first_line(exception)}", NEEDS_LESS_MEMORY)
    if _is_out_of_space(exception):
        hint = "free some space and run the command again"
        return Failure(ExitCode.RESOURCES, f"no space left on the disk: {_first_line(exception)}", hint)
    if isinstance(exception, OSError) and exception.errno in DISK_FAILS:
        hint = "check the disk, or the mount of the network file system, and run the command again"
        return Failure(ExitCode.RESOURCES, f"a disk fails: {_first_line(exception)}", hint)
    if isinstance(exception, OSError) and exception.filename is not None:
        # A matter of the file system rather than a bug: a folder without write permission, a file that is a folder.
        return Failure(ExitCode.USAGE, f"cannot use {exception.filename}: {exception.strerror}")
    return Failure(
        ExitCode.INTERNAL,
        f"internal error: {type(exception).__name__}: {_first_line(exception)}",
        "this is a bug in trm: please report it with the output of the same command with --debug",
    )


def usage_failure(message: str) -> Failure:
    """The failure of a command whose own validation rejected its options."""
    return Failure(ExitCode.USAGE, message, "see the command's --help")


def failure_unsaid(code: int, message: str | None, hint: str | None) -> Failure:
    """The failure of several processes if the one that reports for all ended silently. message: set if some were
    killed.
    """
    if message is not None:
        return Failure(code, message, hint)
    if code in (ExitCode.STOPPED_EARLY, ExitCode.INTERRUPTED):
        return Failure(code, "stopped before the processes could say more", "run the same command again", "stopped")
    return Failure(code, f"a process ended with code {code}: its message is on stderr")


def _first_line(exception: BaseException) -> str:
    lines = str(exception).strip().splitlines()
    return lines[0] if lines else type(exception).__name__


def _is_out_of_space(exception: BaseException) -> bool:
    """Also recognises errors of HDF5, which carry the errno only in their text."""
    if not isinstance(exception, OSError):
        return False
    return exception.errno in OUT_OF_SPACE or any(f"errno = {code}," in str(exception) for code in OUT_OF_SPACE)
