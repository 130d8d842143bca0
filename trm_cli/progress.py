"""Report the progress of a long loop on stderr: a Rich bar on a terminal, occasional plain lines elsewhere.

    with progress("training", total=2000) as p:
        for step in range(2000):
            p.update(step + 1, loss=0.3)

Rate and remaining time are based on the last minute, so that neither a slow start nor a resumed run distorts them.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from trm_cli.console import clean, format_value, is_terminal, log, stderr_console
from trm_cli.processes import this_process

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

WINDOW_SECONDS = 60.0


class Rate:
    """Items per second over the last minute; `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, float]] = deque()

    def add(self, completed: float) -> None:
        """Record that `completed` items are done now. If the count falls, the measurement starts anew."""
        now = self._clock()
        if self._seen and completed < self._seen[-1][1]:
            self._seen.clear()
        # One entry per half second keeps the window small; the newest entry always stands for "now".
        if len(self._seen) >= 2 and now - self._seen[-2][0] < 0.5:
            self._seen.pop()
        self._seen.append((now, completed))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW_SECONDS:
            self._seen.popleft()

    def per_second(self) -> float | None:
        """The rate; None until two different times have been recorded."""
        if len(self._seen) < 2:
            return None
        (t0, c0), (t1, c1) = self._seen[0], self._seen[-1]
        return (c1 - c0) / (t1 - t0) if t1 > t0 else None


def clock_time(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class ProgressReporter:
    """A context manager, created by `progress`."""

    def __init__(self, label: str, total: int | None, every: float, clock: Callable[[], float]) -> None:
        self._label = label
        self._total = total
        self._completed = 0
        self._fields: dict[str, object] = {}
        self._every = every
        self._clock = clock
        self._rate = Rate(clock)
        self._last_line = clock()
        self._printed: int | None = None
        self._silent = this_process().rank > 0  # rank 0 reports for all
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def update(self, completed: int, *, total: int | None = None, label: str | None = None, **fields: object) -> None:
        """Show that `completed` items are done (an absolute count), with `fields` beside it, floats to four digits."""
        if label is not None and label != self._label:
            self._label, self._rate = label, Rate(self._clock)
        if total is not None:
            self._total = total
        self._completed = completed
        self._fields.update(fields)
        self._rate.add(completed)
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, description=self._label, completed=completed, total=self._total, note=self._note()
            )
        elif self._bar is None and not self._silent and self._clock() - self._last_line >= self._every:
            self._print_line()

    def __enter__(self) -> Self:
        if is_terminal(sys.stderr) and not self._silent:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=stderr_console(),
                # Rich would redirect prints to stderr, but results belong on stdout: only if both are the terminal.
                redirect_stdout=is_terminal(sys.stdout),
                transient=False,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._total, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._printed != self._completed and self._completed and not self._silent:
            self._print_line()

    def _note(self) -> str:
        parts = []
        rate = self._rate.per_second()
        if rate is not None and rate > 0:
            parts.append(f"{rate:.3g}/s")
            if self._total is not None and self._completed < self._total:
                parts.append(f"ETA {clock_time((self._total - self._completed) / rate)}")
        parts += [f"{name}={format_value(value)}" for name, value in self._fields.items()]
        return clean(" ".join(parts))

    def _print_line(self) -> None:
        of = f"/{self._total} ({100 * self._completed // self._total}%)" if self._total else ""
        log(f"{self._label} {self._completed}{of} {self._note()}".rstrip())
        self._last_line = self._clock()
        self._printed = self._completed


def progress(
    label: str, total: int | None = None, *, every: float = 10.0, clock: Callable[[], float] = time.monotonic
) -> ProgressReporter:
    """Report a loop of `total` items (None: unknown). Off a terminal, print at most one line every `every` seconds."""
    return ProgressReporter(label, total, every, clock)
