"""The pieces of a stage in several processes, with a count of what is done."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any, TypeVar

from trm_core.data.workers import started_workers

Progress = Callable[[str, int, int], None]
Log = Callable[[str], None]
T = TypeVar("T")


def in_order(work: Callable[..., T], jobs: Sequence[tuple[Any, ...]], workers: int) -> Generator[T, None, None]:
    """`work(*job)` for each job. `work` must be a function of a module, and depend on nothing but the job."""
    count = min(workers, len(jobs)) if len(jobs) > 1 else 0
    with started_workers(count, "data.puzzles.workers") as processes:
        yield from processes.in_order(work, jobs)


def run_all(
    work: Callable[..., T], jobs: Sequence[tuple[Any, ...]], workers: int, done: Callable[[T], None]
) -> list[T]:
    """All results of `in_order`; `done` is called with each and may raise to stop everything."""
    results: list[T] = []
    # Closed here rather than by the garbage collector: an exception that is being reported keeps everything alive.
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
