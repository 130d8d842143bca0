"""Stopping on request: a signal only sets a flag, which the training loop checks between steps."""

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

TIME_IS_UP, LAUNCHER_IS_GONE = 1000, 1001  # reasons to stop other than signals


class StopFlag:
    """Whether to stop, and why. Signals after the first change nothing: a save under way is finished."""

    def __init__(self) -> None:
        self.received: int = 0
        self.deadline: float | None = None  # seconds since the epoch
        # torchrun dies of signals that it does not handle, and would leave this process running unsupervised.
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
        """Raises StoppedEarly (SIGINT: Interrupted) if there is a reason to stop. For places with nothing to save."""
        if self.reason:
            kind = Interrupted if self.reason == signal.SIGINT else StoppedEarly
            raise kind(message, hint=hint)


def reason_name(reason: int) -> str:
    """The reason in words, for the log."""
    names = {TIME_IS_UP: "the time limit", LAUNCHER_IS_GONE: "torchrun is gone"}
    return names.get(reason) or signal.Signals(reason).name


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Inside the context, a StopFlag handles the signals that stop a run."""
    flag = StopFlag()
    with handled_by(flag.handle):
        yield flag


@contextmanager
def handled_by(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside the context, `handle` handles the signals that stop a run. Main thread only."""
    numbers = [*STOP_SIGNALS]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup: the run is meant to outlive its terminal
        numbers.remove(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
