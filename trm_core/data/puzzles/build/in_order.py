"""The same work on many things, in this process or in several, with the results in the order of the things."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

_Result = TypeVar("_Result")
_AHEAD = 4  # jobs under way for each worker


def in_order(workers: int, work: Callable[..., _Result], jobs: Iterable[tuple[Any, ...]]) -> Iterator[_Result]:
    """`work(*job)` for every job; with `workers`, a module's function. Jobs are taken only a few ahead."""
    if not workers:
        for job in jobs:
            yield work(*job)
        return
    # spawn: a fork of a process that runs threads (BLAS, a progress bar) may hang.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        pending: deque[Future[_Result]] = deque()
        try:
            for job in jobs:
                pending.append(pool.submit(work, *job))
                if len(pending) >= _AHEAD * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
