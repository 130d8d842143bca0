"""Stopping on request: a signal only raises a flag, and the loop looks at it between steps."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trm_core.errors import Interrupted, StoppedEarly

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
TIME_IS_UP = 1000  # a reason to stop that is no signal


class Stopped(Exception):
    """Raised and caught inside a run: somebody saw the flag in the middle of something that can be left."""


class StopFlag:
    """Whether to stop, and why. Signals after the first change nothing: a save under way is finished."""

    def __init__(self) -> None:
        self.received: int = 0
        self.deadline: float | None = None  # seconds since the epoch

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number

    @property
    def reason(self) -> int:
        """The number of the first signal, TIME_IS_UP past the deadline, or 0."""
        if not self.received and self.deadline is not None and time.time() >= self.deadline:
            self.received = TIME_IS_UP
        return self.received

    def check(self, message: str, hint: str) -> None:
        """Raises StoppedEarly (SIGINT: Interrupted) if there is a reason. For places with nothing to save."""
        if self.reason:
            kind = Interrupted if self.reason == signal.SIGINT else StoppedEarly
            raise kind(message, hint=hint)


def reason_name(reason: int) -> str:
    """As a log says it."""
    return "the time limit" if reason == TIME_IS_UP else signal.Signals(reason).name


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
