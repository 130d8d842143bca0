"""Make stdin, stdout and stderr safe to use, whoever started the process: a terminal, a batch system or cron; some may
be missing.
"""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import suppress
from typing import Literal, TextIO


class Log(io.TextIOWrapper):
    """A stderr that never fails. Its reader may have left, its disk may be full, its terminal may be gone, but a log
    line must not cost the work in progress.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(stream.buffer, stream.encoding, "backslashreplace", line_buffering=True)
        self.stream = stream  # kept alive: on collection it would close the buffer that both write to

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def prepare_streams() -> None:
    """Make sure that all three streams exist, that stdout and stderr accept every character (what their encoding lacks
    is printed as an escape such as \\xe9), and that stderr never fails.
    """
    sys.stdin = sys.stdin or _nowhere(0, "r")
    sys.stdout = sys.stdout or _nowhere(1, "w")
    sys.stderr = sys.stderr or _nowhere(2, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = Log(sys.stderr)


def close_stdout() -> None:
    """Redirect stdout to /dev/null, so that neither later prints nor the flush at exit fail on a closed pipe."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)


def stdout_is_closed() -> bool:
    """Whether the reader of our stdout has left, or its terminal was disconnected; if so, stdout is redirected to
    /dev/null.

    The operating system is asked, because after a failed write Python may have dropped the data and flush without an
    error.
    """
    stdout = select.poll()
    stdout.register(sys.stdout.fileno(), 0)
    closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in stdout.poll(0))
    if closed:
        close_stdout()
    return closed


def _nowhere(number: int, mode: Literal["r", "w"]) -> TextIO:
    """A stream to /dev/null in place of one that was closed. Otherwise the next opened file would get its descriptor,
    and with it whatever libraries write there.
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
