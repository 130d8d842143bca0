"""stdin, stdout and stderr as this process was given them: by a terminal, a batch system, cron, or not at all."""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import suppress
from typing import Literal, TextIO


class Log(io.TextIOWrapper):
    """A stderr that never fails. Its reader may have left, its disk may be full, its terminal may be gone: no line of a
    log is worth the work.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(stream.buffer, stream.encoding, "backslashreplace", line_buffering=True)
        self.stream = stream  # it would close what both write to, were it collected

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def prepare_streams() -> None:
    """There are all three, stdout and stderr print every character (what their encoding lacks comes out as an escape
    such as \\xe9), and stderr never fails.
    """
    sys.stdin = sys.stdin or _nowhere(0, "r")
    sys.stdout = sys.stdout or _nowhere(1, "w")
    sys.stderr = sys.stderr or _nowhere(2, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = Log(sys.stderr)


def close_stdout() -> None:
    """Point stdout at nothing, so that neither later prints nor the flush at exit fail on a closed pipe."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)


def stdout_is_closed() -> bool:
    """Whether it was our stdout whose reader, or the connection of whose terminal, has left; then stdout points at
    nothing from now on.

    Asked of the system: after a failed write Python may have dropped what it could not write, and flushes happily.
    """
    stdout = select.poll()
    stdout.register(sys.stdout.fileno(), 0)
    closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in stdout.poll(0))
    if closed:
        close_stdout()
    return closed


def _nowhere(number: int, mode: Literal["r", "w"]) -> TextIO:
    """For a stream that was closed: else the next file that is opened would take its number, and get what libraries
    write there.
    """
    try:
        os.fstat(number)
    except OSError:
        nothing = os.open(os.devnull, os.O_RDWR)
        if nothing != number:
            os.dup2(nothing, number)
            os.close(nothing)
        os.set_inheritable(number, True)
    return open(os.devnull, mode, encoding="utf-8")
