"""Batches of training rows: endless, shuffled, resumable to the row; and plain batches for evaluation.

`SampleStream` joins the order (`trm_core.data.order`) with windows read from capsule files (`trm_core.data.windows`)
and yields float32 tensors. Memory does not grow with the files: it holds one window per file, and the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trm_core.data.batch import WHOLE, CapsuleBatch, Part
from trm_core.data.encoding import Encoding
from trm_core.data.fields import FIELDS, IGNORE_LABEL
from trm_core.data.order import RowOrder, key_of, uniform
from trm_core.data.store import CapsuleFile
from trm_core.data.windows import LocalReader, Source, Window, WorkerReader
from trm_core.errors import CheckpointError, ConfigError, DataError

_PIECE_BYTES = 512 << 10  # rows gathered at a time before they become float32: what fits into a core's cache
_BATCH_FIELDS = ("sketches", "children", "checksums", "labels", "parents", "mask", "modality")


class SampleStream:
    """Endless shuffled rows of one or several files.

    With several files each row's file is drawn by weight (keyed by the row's global number), and each file is walked in
    an order of its own. The order does not depend on num_workers, fields, or how many rows are taken at a time. Several
    processes share the one order: each takes its own part of every `take`, so all have the same position.

    files: capsule files with their weights. fields: what to load besides sketches (default: all there is).
    window_bytes: memory for the windows in use, in the files' dtypes. Raises DataError if a file lacks the split,
    ConfigError if files do not fit together.
    """

    def __init__(
        self,
        files: list[tuple[CapsuleFile, float]],
        split: str = "train",
        *,
        seed: int,
        fields: Sequence[str] | None = None,
        window_bytes: int = 64 << 20,
        block_rows: int = 64,
        num_workers: int = 0,
    ) -> None:
        if not files or block_rows < 1:
            raise ValueError(f"need files and block_rows >= 1; got {len(files)} files, {block_rows=}")
        for file, _ in files:
            require_same_shape(files[0][0], file, split)
        self._files = [file for file, _ in files]
        weights = np.array([weight for _, weight in files], np.float64)
        self._bounds = np.cumsum(weights / weights.sum())[:-1]
        self._draw_key = key_of(seed, 3)
        self._seed = seed
        share = window_bytes // len(files)
        self._sources = []
        for index, file in enumerate(self._files):
            blocks = max(1, share // (block_rows * file.layout.bytes_per_row))
            order = RowOrder(file.rows[split], block_rows, blocks, seed, index)
            self._sources.append(Source(file, split, order, _loaded(file, fields)))
        self._reader: LocalReader | WorkerReader = (
            WorkerReader(self._sources, num_workers) if num_workers else LocalReader(self._sources)
        )
        self._windows: list[Window | None] = [None] * len(files)
        self._pieces: dict[str, np.ndarray] = {}
        self._taken = 0  # rows given to all processes so far
        self._counts = [0] * len(files)  # the same, by file

    @property
    def epoch(self) -> float:
        """Rows given to all processes so far, divided by the rows there are (in all files)."""
        return self._taken / sum(source.order.rows for source in self._sources)

    def take(self, n: int, before: int = 0, after: int = 0) -> CapsuleBatch:
        """The next n rows (n >= 0) out of the before + n + after that all processes take together; the rows of lower
        ranks come before ours. Raises DataError or ResourceError if they cannot be read.
        """
        picks, counts = self._picks(n, before, after)
        fields = self._sources[0].fields
        batch = {name: self._room(name, n) for name in fields}
        batch["rows"] = np.empty(n, np.int64)
        for source, (slots, positions) in enumerate(picks):
            begin = 0
            while begin < len(slots):
                window = self._window(source, int(positions[begin]))
                end = int(np.searchsorted(positions, window.place.stop))
                index = window.visit[positions[begin:end] - window.place.start]
                for name in fields:
                    self._put(name, window.arrays[name], index, batch[name], slots[begin:end])
                batch["rows"][slots[begin:end]] = window.rows[index]
                begin = end
        self._taken += before + n + after
        self._counts = counts
        return _batch(fields, batch)

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain numbers and lists."""
        return {
            "seed": self._seed,
            "taken": self._taken,
            "counts": list(self._counts),
            "sources": self._fingerprints(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken. Raises CheckpointError if seed, files or window sizes differ,
        because then the position means nothing.
        """
        for key, mine in (("seed", self._seed), ("sources", self._fingerprints())):
            if state[key] != mine:
                raise CheckpointError(
                    f"data position: {key} was {state[key]} when it was saved and is {mine} now",
                    hint="resume with the same data and training.seed",
                )
        self._taken = int(state["taken"])
        self._counts = [int(count) for count, _ in zip(state["counts"], self._sources, strict=True)]
        self._windows = [None] * len(self._sources)

    def close(self) -> None:
        """End worker processes, if there are any."""
        self._reader.close()
        self._windows = [None] * len(self._sources)

    def _fingerprints(self) -> list[list[Any]]:
        return [
            [order.rows, order.block_rows, order.window_blocks, source.file.manifest.get("content_hash")]
            for source in self._sources
            for order in (source.order,)
        ]

    def _draw(self, start: int, stop: int) -> np.ndarray:
        """[stop - start] int64: which file each of these global rows comes from."""
        if len(self._sources) == 1:
            return np.zeros(stop - start, np.int64)
        draws = uniform(self._draw_key, np.arange(start, stop, dtype=np.int64))
        return np.searchsorted(self._bounds, draws, side="right")

    def _picks(self, n: int, before: int, after: int) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[int]]:
        """For each file: the batch slots of our n rows that it fills, and their positions in its order; then the counts
        by file after the rows of all processes.
        """
        drawn = self._draw(self._taken, self._taken + before + n + after)
        picks, counts = [], []
        for source in range(len(self._sources)):
            here = drawn == source
            positions = self._counts[source] + np.cumsum(here) - 1
            slots = np.flatnonzero(here[before : before + n])
            picks.append((slots, positions[before + slots]))
            counts.append(self._counts[source] + int(here.sum()))
        return picks, counts

    def _room(self, name: str, n: int) -> np.ndarray:
        """An empty array [n, ...] to gather a field in, in the dtype of a batch."""
        dtype = np.result_type(*(np.dtype(file.layout.dtypes[name]) for file in self._files))
        return np.empty((n, *self._files[0].layout.row_shape(name)), np.float32 if dtype == np.float16 else dtype)

    def _put(self, name: str, array: np.ndarray, index: np.ndarray, out: np.ndarray, slots: np.ndarray) -> None:
        """out[slots] = array[index], for ascending slots."""
        first, last = int(slots[0]), int(slots[-1])
        if last - first + 1 != len(slots):  # slots of other files lie in between
            out[slots] = array[index]
        elif array.dtype == out.dtype:
            _take(array, index, out[first : last + 1])
        else:
            if name not in self._pieces:
                rows = max(1, _PIECE_BYTES // array[:1].nbytes)
                self._pieces[name] = np.empty((rows, *array.shape[1:]), array.dtype)
            piece = self._pieces[name]
            # numpy is several times as fast as torch at gathering, and torch than numpy at converting.
            for begin in range(0, len(index), len(piece)):
                some = index[begin : begin + len(piece)]
                _take(array, some, piece[: len(some)])
                into = out[first + begin : first + begin + len(some)]
                torch.from_numpy(into).copy_(torch.from_numpy(piece[: len(some)]))

    def _window(self, source: int, position: int) -> Window:
        window = self._windows[source]
        if window is None or not window.place.start <= position < window.place.stop:
            self._windows[source] = None
            window = self._reader.get(source, position)
            self._windows[source] = window
        return window


def sequential_batches(
    file: CapsuleFile,
    split: str,
    batch_size: int,
    fields: Sequence[str] | None = None,
    limit: int | None = None,
    part: Part = WHOLE,
) -> Iterator[CapsuleBatch]:
    """All rows of a split once, in file order, in batches of at most batch_size, or `limit` rows spread evenly over it.
    Only the batches that belong to `part` are yielded.
    """
    names = _loaded(file, fields)
    if split not in file.rows:
        raise _no_split(file, split)
    rows = spread(file.rows[split], limit)
    for start in part.starts(len(rows), batch_size):
        some = rows[start : start + batch_size]
        near = int(some[-1] - some[0]) + 1 == len(some)
        arrays = file.read(split, slice(int(some[0]), int(some[-1]) + 1) if near else some, names)
        arrays["rows"] = some
        yield _batch(names, arrays)


def spread(rows: int, limit: int | None) -> np.ndarray:
    """The numbers of all `rows` rows, or of `limit` of them at equal distances, beginning with the first."""
    if limit is None or limit >= rows:
        return np.arange(rows)
    return np.arange(limit, dtype=np.int64) * rows // limit


def _loaded(file: CapsuleFile, fields: Sequence[str] | None) -> tuple[str, ...]:
    for name in fields or ():
        if name not in FIELDS or not file.has(name):
            raise DataError(f"{file.path}: has no field {name!r}", hint=f"it has {', '.join(file.fields)}")
    wanted = _BATCH_FIELDS if fields is None else ("sketches", *fields)
    return tuple(name for name in _BATCH_FIELDS if name in wanted and file.has(name))


def _no_split(file: CapsuleFile, split: str) -> DataError:
    return DataError(f"{file.path}: has no {split} split", hint=f"it has {', '.join(file.rows)}")


def require_same_shape(first: CapsuleFile, file: CapsuleFile, split: str) -> None:
    """Raise ConfigError if rows of two files cannot be mixed, DataError if `file` lacks the split."""
    if split not in file.rows:
        raise _no_split(file, split)
    for what in ("num_capsules", "dim", "num_children", "checksum_dim", "label_rank", "fields", "num_classes", "task"):
        mine, theirs = getattr(first, what), getattr(file, what)
        if mine != theirs:
            raise ConfigError(
                f"{file.path}: {what} is {theirs}, but {mine} in {first.path}: these files cannot be mixed",
                hint="build them into one file: `trm build-capsules SOURCE SOURCE --out FILE`",
            )
    found = Encoding.of(first.manifest).contradiction(Encoding.of(file.manifest))
    if found is not None:
        raise ConfigError(
            f"{file.path} cannot be mixed with {first.path}: {found.why}",
            hint="build them into one file: `trm build-capsules SOURCE SOURCE --out FILE`",
        )


def _take(array: np.ndarray, index: np.ndarray, out: np.ndarray) -> None:
    np.take(array, index, axis=0, out=out, mode="clip")  # the default mode makes a copy first


def _batch(names: Sequence[str], arrays: dict[str, np.ndarray]) -> CapsuleBatch:
    """Tensors of arrays that all have the same number of rows; float32 ones share their memory."""

    def tensor(name: str) -> Tensor | None:
        if name not in names:
            return None
        values = torch.from_numpy(arrays[name])
        return values.float() if values.is_floating_point() else values

    sketches, labels = tensor("sketches"), tensor("labels")
    assert sketches is not None
    n = len(sketches)
    return CapsuleBatch(
        sketches=sketches,
        children=tensor("children"),
        checksums=tensor("checksums"),
        labels=torch.full((n,), IGNORE_LABEL, dtype=torch.int64) if labels is None else labels,
        parents=tensor("parents"),
        mask=tensor("mask"),
        modality=tensor("modality"),
        rows=torch.from_numpy(arrays["rows"]),
    )
