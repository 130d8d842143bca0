"""The boundary to third-party sinks: whatever they raise, and even if they never return, training goes on.

A guarded sink runs in a thread of its own, behind a queue. If anything goes wrong, that is reported once and the sink
is switched off until the run is started again: one that failed now and then would leave gaps that nobody notices.
metrics.jsonl has every line.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

_QUEUED_LINES = 1000


class ThirdPartySink(Protocol):
    """What `Guarded` needs from third-party code. Everything but `break_off` runs in the guard's thread."""

    def open(self) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...

    def break_off(self) -> None:
        """Called from another thread when a call does not return: try to end it, at once, whatever is lost."""


@dataclass(frozen=True)
class Patience:
    """Seconds for which a sink may hold up training before it is switched off."""

    opening: float = 90.0
    logging: float = 30.0  # for room in a full queue
    closing: float = 60.0


class Guarded:
    """A `MetricsLogger` around `sink`; `name` is what the warning calls it."""

    def __init__(
        self, name: str, sink: ThirdPartySink, warn: Callable[[str], None], patience: Patience | None = None
    ) -> None:
        self.name, self.sink, self.warn, self.patience = name, sink, warn, patience or Patience()
        self.lines: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(_QUEUED_LINES)
        self.opened = threading.Event()
        self.failure: str | None = None  # set by the thread, reported at the next call, so that warnings do not mix
        self.off = False
        # A daemon: a thread that never returns must not keep the process alive.
        self.thread = threading.Thread(target=self._work, name=f"{name} sink", daemon=True)
        try:
            self.thread.start()
        except RuntimeError as error:  # this user's limit of threads is reached
            self._say(str(error))
            return
        if not self.opened.wait(self.patience.opening):
            self._switch_off(f"it did not start within {self.patience.opening:g} seconds")
        self._look()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._look()
        if self.off:
            return
        try:
            self.lines.put((step, dict(values)), timeout=self.patience.logging)
        except queue.Full:
            self._look()
            if not self.off:
                self._switch_off(f"it has accepted nothing for {self.patience.logging:g} seconds")

    def rewind(self, step: int) -> None:
        """Nothing is taken back from third-party sinks; each documents what that means."""

    def close(self) -> None:
        self._look()
        if self.off:
            return
        deadline = time.monotonic() + self.patience.closing
        with suppress(queue.Full):
            self.lines.put(None, timeout=self.patience.closing)
        self.thread.join(max(0.0, deadline - time.monotonic()))
        if self.thread.is_alive():
            self._switch_off(f"it did not finish within {self.patience.closing:g} seconds")
        self._look()

    def _work(self) -> None:
        try:
            self.sink.open()
            self.opened.set()
            while (line := self.lines.get()) is not None:
                self.sink.log(*line)
            self.sink.close()
        # Third-party code may raise anything, and must never end a run of days.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            text = str(error).strip().splitlines()
            self.failure = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
            self.opened.set()
            with suppress(Exception, SystemExit):
                self.sink.close()
        finally:
            self._drain()

    def _drain(self) -> None:
        """Empty the queue, to release a caller that waits for room."""
        with suppress(queue.Empty):
            while True:
                self.lines.get_nowait()

    def _look(self) -> None:
        if self.failure is not None and not self.off:
            self._say(self.failure)

    def _switch_off(self, why: str) -> None:
        self._say(why)
        self.sink.break_off()
        # A call that was broken off should end now; give it time to clean up before the process exits.
        self.thread.join(5.0)

    def _say(self, why: str) -> None:
        self.off = True
        self.warn(f"warning: {self.name} is switched off: {why}; training goes on, and metrics.jsonl has every line")
