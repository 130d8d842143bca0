"""Worker processes to which builders give pieces of work, with the results in order; or this process alone.

Workers start at once and do their imports while the builder does something else. They end with the builder, even if it
is killed, and ignore signals, which may reach the whole process group: the builder handles those.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from trm_core.child_process import STOP_SIGNALS
from trm_core.errors import ResourceError

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """`pool` None: the work is done in this process."""

    pool: ProcessPoolExecutor | None
    count: int

    def in_order(self, work: Callable[..., T], jobs: Iterable[tuple[Any, ...]]) -> Generator[T, None, None]:
        """`work(*job)` for each job, at most two per worker under way. `work` must be a function of a module, and
        depend on nothing but the job.
        """
        if self.pool is None:
            for job in jobs:
                yield work(*job)
            return
        pending: deque[Future[T]] = deque()
        for job in jobs:
            pending.append(self.pool.submit(work, *job))
            if len(pending) >= 2 * self.count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@contextmanager
def started_workers(count: int, key: str, imports: Sequence[str] = ()) -> Iterator[Workers]:
    """`count` processes (0: none) that import the named modules first. An exception in the `with` block ends them at
    once. Raises ResourceError if one dies; `key` is the setting that says how many there are.
    """
    if count == 0:
        yield Workers(None, 0)
        return
    # spawn: a fork of a process that runs threads (BLAS, a progress bar) may hang.
    context = multiprocessing.get_context("spawn")
    # Workers live as long as our end of a pipe is open: it closes when we stop early, and when we are killed.
    theirs, ours = context.Pipe(duplex=False)
    # Send little here: if a process dies while starting, sending it more than a pipe holds would block for ever.
    with ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(theirs, tuple(imports))) as pool:
        finished, begun = False, []
        try:
            begun += [pool.submit(_nothing) for _ in range(count)]  # starts one process each
            yield Workers(pool, count)
            finished = True
        except BrokenProcessPool:
            raise _died(key, any(one.done() and not one.exception() for one in begun)) from None
        finally:
            if not finished:
                ours.close()
    ours.close()
    theirs.close()


def _died(key: str, had_begun: bool) -> ResourceError:
    if had_begun:
        return ResourceError("a worker process died, perhaps because memory ran out", hint=f"use fewer workers: {key}")
    return ResourceError(
        "no worker process could start; its error is above",
        hint='a script that starts workers must do its work under `if __name__ == "__main__":`; '
        f"with {key}=0 none are started",
    )


def _begin(lifeline: Connection, imports: Sequence[str]) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    for module in imports:
        importlib.import_module(module)


def _nothing() -> None:
    """A job that starts a worker."""


def _end_with(lifeline: Connection) -> None:
    wait([lifeline])
    os._exit(1)
