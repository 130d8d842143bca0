"""Independent pieces of work in this process or in several, with their results in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from trm_core.errors import ResourceError

Progress = Callable[[str, int, int], None]
Log = Callable[[str], None]
T = TypeVar("T")


def in_order(work: Callable[..., T], jobs: Sequence[tuple[Any, ...]], workers: int) -> Generator[T, None, None]:
    """`work(*job)` for each job. `work` must be a function of a module, and depend on nothing but the job."""
    if workers == 0 or len(jobs) < 2:
        for job in jobs:
            yield work(*job)
        return
    # spawn: a fork of a process that runs threads (BLAS, a progress bar) may hang.
    context = multiprocessing.get_context("spawn")
    # Workers live as long as our end of a pipe is open: it closes when we stop early, and when we are killed.
    theirs, ours = context.Pipe(duplex=False)
    count = min(workers, len(jobs))
    with ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=(theirs,)) as pool:
        pending: deque[Future[T]] = deque()
        try:
            for job in jobs:
                pending.append(pool.submit(work, *job))
                if len(pending) >= 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise ResourceError(
                "a worker process died, perhaps for want of memory", hint="use fewer workers: data.puzzles.workers"
            ) from None
        finally:
            if pending:
                ours.close()
    ours.close()
    theirs.close()


def run_all(
    work: Callable[..., T], jobs: Sequence[tuple[Any, ...]], workers: int, done: Callable[[T], None]
) -> list[T]:
    """All results of `in_order`; `done` hears of each and may raise to end it all."""
    results: list[T] = []
    # Closed here and not by the garbage collector: an exception that is being reported keeps everything alive.
    with closing(in_order(work, jobs, workers)) as stream:
        for result in stream:
            results.append(result)
            done(result)
    return results


class Counter:
    """Reports how much of a stage is done."""

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self._progress, self._stage, self._total, self._done = progress, stage, total, 0
        progress(stage, 0, total)

    def add(self, count: int) -> None:
        self._done += count
        self._progress(self._stage, self._done, self._total)


def ranges(total: int, size: int) -> list[tuple[int, int]]:
    """[0, total) cut into pieces of at most `size`."""
    return [(start, min(start + size, total)) for start in range(0, total, size)]


def _start_worker(lifeline: Connection) -> None:
    # Signals may reach the whole group of processes: the parent decides what happens.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    wait([lifeline])
    os._exit(1)
