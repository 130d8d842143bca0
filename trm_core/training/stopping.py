"""Stopping on request: a signal only raises a flag, and the loop looks at it between steps."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from trm_core.child_process import STOP_SIGNALS
from trm_core.distributed.place import by_torchrun
from trm_core.errors import Interrupted, StoppedEarly

TIME_IS_UP, LAUNCHER_IS_GONE = 1000, 1001  # reasons to stop that are no signals


class StopFlag:
    """Whether to stop, and why. Signals after the first change nothing: a save under way is finished."""

    def __init__(self) -> None:
        self.received: int = 0
        self.deadline: float | None = None  # seconds since the epoch
        # torchrun dies of signals that it does not know, and would leave us running with nobody to stop us.
        self.launcher = os.getppid() if by_torchrun() else None

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number

    @property
    def reason(self) -> int:
        """The number of the first signal, TIME_IS_UP past the deadline, LAUNCHER_IS_GONE, or 0."""
        if not self.received and self.deadline is not None and time.time() >= self.deadline:
            self.received = TIME_IS_UP
        if not self.received and self.launcher is not None and os.getppid() != self.launcher:
            self.received = LAUNCHER_IS_GONE
        return self.received

    def check(self, message: str, hint: str) -> None:
        """Raises StoppedEarly (SIGINT: Interrupted) if there is a reason. For places with nothing to save."""
        if self.reason:
            kind = Interrupted if self.reason == signal.SIGINT else StoppedEarly
            raise kind(message, hint=hint)


def reason_name(reason: int) -> str:
    """As a log says it."""
    names = {TIME_IS_UP: "the time limit", LAUNCHER_IS_GONE: "torchrun is gone"}
    return names.get(reason) or signal.Signals(reason).name


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """The flag as handler of the signals that stop a run, inside the context."""
    flag = StopFlag()
    with handled_by(flag.handle):
        yield flag


@contextmanager
def handled_by(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """`handle` gets the signals that stop a run inside the context. Main thread only."""
    numbers = [*STOP_SIGNALS]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # by nohup: the run is to outlive its terminal
        numbers.remove(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
