"""Stopping on request: a signal only raises a flag, and the loop looks at it between steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trm_core.errors import Interrupted, StoppedEarly

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(Exception):
    """Raised and caught inside a run: somebody saw the flag in the middle of something that can be left."""


class StopFlag:
    """`received` is the first signal, or None. Later signals change nothing: a save under way is finished."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)

    def check(self, message: str, hint: str) -> None:
        """Raises StoppedEarly (SIGINT: Interrupted) if there was a signal. For places with nothing to save."""
        if self.received is not None:
            kind = Interrupted if self.received == signal.SIGINT else StoppedEarly
            raise kind(message, hint=hint)


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Install the flag as handler inside the context, put the old handlers back after. Main thread only."""
    flag = StopFlag()
    before = {number: signal.signal(number, flag.handle) for number in SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
