"""Windows of rows in memory, read here or ahead of time in worker processes.

Between the order (`trm_core.data.order`) and the loader (`trm_core.data.stream`). Workers are plain processes with a
pipe each: they answer requests in turn, hold at most one window that nobody has fetched, end when their pipe closes
(so also when the trainer is killed), and their death is an error of the next request, never a hang.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from trm_core.child_process import STOP_SIGNALS
from trm_core.data.order import Place, RowOrder
from trm_core.data.store import CapsuleFile
from trm_core.errors import DataError, ResourceError

_JOIN_S = 5.0


@dataclass(frozen=True)
class Source:
    """One file's split and its order."""

    file: CapsuleFile
    split: str
    order: RowOrder
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Window:
    """The rows of one window, in memory in the file's dtypes."""

    place: Place
    rows: np.ndarray  # [w] int64, ascending
    visit: np.ndarray  # [w] position in `rows` of each row in the order of visit
    arrays: dict[str, np.ndarray]  # field -> [w, ...]
    room: dict[str, np.ndarray]  # the arrays of which `arrays` are the beginning


def read_window(source: Source, place: Place, last: Window | None) -> Window:
    """Read one window. `last`, which nobody needs any more, lends its arrays: they are kept if it holds the same rows
    (a file of a single window), else overwritten.
    """
    rows, visit = source.order.window_rows(place.epoch, place.window)
    if last is not None and np.array_equal(rows, last.rows):
        return Window(place, rows, visit, last.arrays, last.room)
    room = _room(source) if last is None else last.room
    return Window(place, rows, visit, source.file.read(source.split, rows, source.fields, room), room)


def _room(source: Source) -> dict[str, np.ndarray]:
    """Arrays with room for the largest window; any window takes their beginning."""
    rows = min(source.order.rows, source.order.block_rows * source.order.window_blocks)
    layout = source.file.layout
    return {name: np.empty((rows, *layout.row_shape(name)), layout.dtypes[name]) for name in source.fields}


class LocalReader:
    """Reads windows in this process, when they are needed."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._last: list[Window | None] = [None] * len(sources)

    def get(self, source: int, position: int) -> Window:
        """The window of a source that holds a position of its order; invalidates the window given before."""
        place = self._sources[source].order.place(position)
        last, self._last[source] = self._last[source], None  # a failed read leaves it half overwritten
        self._last[source] = window = read_window(self._sources[source], place, last)
        return window

    def close(self) -> None:
        """Forget the windows."""
        self._last = [None] * len(self._sources)


class WorkerReader:
    """Reads windows ahead in worker processes; `get` gives the same windows as LocalReader's.

    Resident memory: one window per worker and one in use. Raises ResourceError if a worker dies.
    """

    def __init__(self, sources: Sequence[Source], num_workers: int) -> None:
        self._sources = sources
        self._ahead = max(1, num_workers // len(sources))
        self._pending: dict[tuple[int, int], int] = {}  # (source, start of window) -> worker that was asked
        self._arrived: dict[tuple[int, int], Window] = {}
        self._asked = 0
        context = multiprocessing.get_context("spawn")  # fork would copy locks held by torch's threads
        self._workers: list[tuple[Any, Connection]] = []
        for _ in range(num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, tuple(sources)), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))
        # Runs before multiprocessing's own clean-up at exit, which would wait for workers that wait for us.
        self._finish = multiprocessing.util.Finalize(self, _stop, args=(self._workers,), exitpriority=10)

    def get(self, source: int, position: int) -> Window:
        """The window of a source that holds a position of its order; asks for the ones that follow."""
        order = self._sources[source].order
        places = [order.place(position)]
        for _ in range(self._ahead):
            places.append(order.place(places[-1].stop))
        starts = {place.start for place in places}
        for key in [key for key in self._arrived if key[0] == source and key[1] not in starts]:
            del self._arrived[key]  # asked for before a jump to another position
        for place in places:
            self._ask(source, place)
        wanted = (source, places[0].start)
        while wanted not in self._arrived:
            self._receive(self._pending[wanted])
        return self._arrived.pop(wanted)

    def close(self) -> None:
        """End the workers."""
        self._finish()
        self._pending.clear()
        self._arrived.clear()

    def _ask(self, source: int, place: Place) -> None:
        key = (source, place.start)
        if key in self._pending or key in self._arrived:
            return
        worker = self._asked % len(self._workers)
        self._asked += 1
        try:
            self._workers[worker][1].send((source, place))
        except OSError as error:
            raise self._died(worker) from error
        self._pending[key] = worker

    def _receive(self, worker: int) -> None:
        """Take the next answer of a worker."""
        process, pipe = self._workers[worker]
        multiprocessing.connection.wait([pipe, process.sentinel])
        try:
            source, place, answer = pipe.recv()
            if isinstance(answer, DataError):
                del self._pending[source, place.start]  # if asked for again, it is read again
                raise answer
            rows, visit, shapes = answer
            arrays = {}
            for name, (shape, dtype) in shapes.items():
                arrays[name] = np.empty(shape, dtype)
                if arrays[name].size:
                    pipe.recv_bytes_into(_bytes(arrays[name]))
        except (EOFError, OSError) as error:
            raise self._died(worker) from error
        del self._pending[source, place.start]
        self._arrived[source, place.start] = Window(place, rows, visit, arrays, arrays)

    def _died(self, worker: int) -> ResourceError:
        process = self._workers[worker][0]
        process.join(_JOIN_S)
        return ResourceError(
            f"a loader process ended (exit code {process.exitcode}) while reading {self._sources[0].file.path}",
            hint="it may have been killed for memory; data.num_workers=0 reads in the training process",
        )


def _bytes(array: np.ndarray) -> memoryview:
    """The memory of a C-ordered array."""
    return array.reshape(-1).view(np.uint8).data


def _stop(workers: list[tuple[Any, Connection]]) -> None:
    for _, pipe in workers:
        pipe.close()
    for process, _ in workers:
        process.join(_JOIN_S)
        if process.is_alive():
            process.kill()
            process.join()
    workers.clear()


def _work(pipe: Connection, sources: tuple[Source, ...]) -> None:
    """A worker's life: answer (source, place) with the window, until the pipe closes."""
    # The trainer decides when to stop; signals to the whole group must not kill its loader while it saves.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    last: list[Window | None] = [None] * len(sources)
    try:
        while True:
            source, place = pipe.recv()
            before, last[source] = last[source], None
            try:
                window = read_window(sources[source], place, before)
            except DataError as error:
                pipe.send((source, place, error))
                continue
            last[source] = window
            shapes = {name: (array.shape, array.dtype.str) for name, array in window.arrays.items()}
            pipe.send((source, place, (window.rows, window.visit, shapes)))
            for array in window.arrays.values():
                if array.size:
                    pipe.send_bytes(_bytes(np.ascontiguousarray(array)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
