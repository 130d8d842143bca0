"""Read a capsule file in pieces. `open_capsules` is where a bad file is refused; later reads only move bytes."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from trm_core.data.fields import ENCODERS, IGNORE_LABEL, PRICES, SPLITS
from trm_core.data.store.checked import CheckedReader
from trm_core.data.store.guard import Structure, inspect_structure, refuse_non_hdf5
from trm_core.data.store.quarantine import examine_in_child, identity
from trm_core.data.store.verify import Problem, verify_file
from trm_core.errors import DISK_FAILS, DataError

_SCAN_ROWS = 65536
_HINT_REBUILD = "build the file again from its source"
_MERGE_GAP_ROWS = 64  # rows wanted this close together are read in one go, with what lies between
_MERGE_BYTES = 4 << 20
_STRETCH_ROWS = 32  # this many consecutive rows are read straight into their place


def open_capsules(path: str | Path) -> CapsuleFile:
    """Open a capsule file. Only its structure is read.

    Raises DataError, naming file and dataset with a hint, for anything missing, incomplete, foreign or hostile. A file
    that this process has neither written nor opened before is examined in a child process first.
    """
    path = Path(path)
    refuse_non_hdf5(path)
    examine_in_child(path)
    return CapsuleFile(path, inspect_structure(path))


class CapsuleFile:
    """A complete capsule file.

    The handle is opened at the first read, per process, and dropped when the object is pickled, so it may be handed to
    worker processes.
    """

    def __init__(self, path: Path, structure: Structure) -> None:
        layout = structure.layout
        self.path = path.absolute()
        self.layout = layout
        self.manifest: dict[str, Any] = structure.manifest
        self.rows: dict[str, int] = structure.rows
        self.num_capsules = layout.num_capsules
        self.dim = layout.dim
        self.num_children = layout.num_children
        self.checksum_dim = layout.checksum_dim
        self.label_rank = layout.label_rank
        self.num_classes: int | None = structure.manifest.get("num_classes")
        self.task: str = structure.manifest.get("task", "classes")
        self.has_prices = structure.has_prices
        self.encoder_arrays = structure.encoder_arrays
        self._identity = identity(path)
        self._h5: h5py.File | None = None
        self._closing: weakref.finalize[..., Any] | None = None
        self._owner = 0
        self._readers: dict[str, CheckedReader] = {}  # of that handle
        self.prices = self._read_prices() if structure.has_prices else np.ones(self.num_capsules, np.float32)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields every split has, in the order of FIELDS."""
        return tuple(self.layout.dtypes)

    def has(self, field: str) -> bool:
        """True if the file has this field (see `trm_core.data.fields`)."""
        return field in self.layout.dtypes

    def read(
        self,
        split: str,
        rows: slice | np.ndarray,
        fields: Sequence[str] | None = None,
        room: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Arrays of the given rows, in the stored dtypes; all fields by default.

        `rows` is a slice (contiguous ones are fast) or an array [n] of row numbers, in any order and with repetitions.
        `room`: arrays of an earlier call that nobody needs any more; rows given as an array are written into those that
        are long enough, which saves the system fresh pages. Raises DataError for a split or field the file does not
        have and for bytes that cannot be read, IndexError for row numbers outside the split.
        """
        names = self.fields if fields is None else tuple(fields)
        count = self._count(split)
        for name in names:
            if not self.has(name):
                raise DataError(f"{self.path}: has no field {name!r}", hint=f"it has {', '.join(self.fields)}")
        if isinstance(rows, slice):
            start, stop, step = rows.indices(count)
            if step == 1:
                stop = max(start, stop)
                return {name: self._read_range(split, name, start, stop) for name in names}
            rows = np.arange(start, stop, step)
        index = np.asarray(rows)
        if index.ndim != 1 or index.dtype.kind not in "iu":
            raise IndexError(f"rows must be a slice or a vector of integers, got {index.dtype} {index.shape}")
        if len(index) and (index.min() < 0 or index.max() >= count):
            raise IndexError(f"rows {index.min()} to {index.max()} are not all within the {count} rows of {split}")
        index = index.astype(np.int64)
        return {name: self._read_rows(split, name, index, (room or {}).get(name)) for name in names}

    def require_trainable(self) -> None:
        """Raise DataError if no model can learn from the training split: none there, no labels, or all alike."""
        if "train" not in self.rows:
            raise DataError(
                f"{self.path}: has no train split, only {', '.join(self.rows)}",
                hint="build it with validation + test < 1",
            )
        if not self.has("labels"):
            raise DataError(
                f"{self.path}: has no labels, so there is nothing to learn",
                hint="build it with a label column (--label NAME), or from text or images with concept targets",
            )
        low, high = self.require_labels("train")
        if low > high:
            raise DataError(
                f"{self.path}: every training label is {IGNORE_LABEL} (ignored)",
                hint="build it with the right label column",
            )
        if low == high:
            raise DataError(
                f"{self.path}: all training labels are {low}, so there is nothing to learn",
                hint="build it with the label column that holds the answer",
            )

    def require_labels(self, split: str) -> tuple[int, int]:
        """The smallest and largest label of a split (the first is larger than the second where there are none). Raises
        DataError if one is outside the classes: a network cannot even be scored on it.
        """
        low, high = np.iinfo(np.int64).max, np.iinfo(np.int64).min
        for start in range(0, self._count(split) if self.has("labels") else 0, _SCAN_ROWS):
            labels = self.read(split, slice(start, start + _SCAN_ROWS), ["labels"])["labels"]
            kept = labels[labels != IGNORE_LABEL]
            if len(kept):
                low, high = min(low, int(kept.min())), max(high, int(kept.max()))
        if low < 0 or (self.num_classes is not None and low <= high and high >= self.num_classes):
            raise DataError(
                f"{self.path}: {split} labels reach from {low} to {high}, outside 0 to {self.num_classes} - 1",
                hint=_HINT_REBUILD,
            )
        return low, high

    def verify(self, progress: Callable[[str, int, int], None] | None = None) -> list[Problem]:
        """Read everything and report what is wrong; see `trm_core.data.store.verify`. Memory does not grow with N."""
        return verify_file(self, progress)

    def slices(self, split: str, row_bytes: int, budget: int = 8 << 20) -> Iterator[slice]:
        """Contiguous slices that cover a split, each about `budget` bytes of rows of `row_bytes`."""
        count = self._count(split)
        step = max(1, budget // max(1, row_bytes))
        return (slice(start, min(start + step, count)) for start in range(0, count, step))

    def read_encoder_array(self, name: str) -> np.ndarray:
        """One of `encoder_arrays`, such as "0/components", whole. Raises DataError for bytes that cannot be read."""
        assert name in self.encoder_arrays, name
        try:
            return np.asarray(self._handle()[f"{ENCODERS}/{name}"][()])
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{self.path}: {ENCODERS}/{name} cannot be read ({error})",
                hint="the file is damaged; build it again from its source",
            ) from error

    def close(self) -> None:
        """Close this process's handle; the next read opens it again."""
        if self._closing is not None:
            self._closing()
        self._h5 = self._closing = None
        self._readers = {}

    def __enter__(self) -> CapsuleFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_h5": None, "_closing": None, "_readers": {}}

    def __repr__(self) -> str:
        sizes = f"k={self.num_capsules}, m={self.num_children}, D={self.dim}"
        return f"CapsuleFile({str(self.path)!r}, rows={self.rows}, {sizes})"

    def _count(self, split: str) -> int:
        if split not in self.rows:
            known = "unknown split" if split not in SPLITS else "has no split"
            raise DataError(f"{self.path}: {known} {split!r}", hint=f"it has {', '.join(self.rows)}")
        return self.rows[split]

    def _handle(self) -> h5py.File:
        if self._h5 is None or self._owner != os.getpid():
            # A handle inherited by fork belongs to the parent, which may be using it: leave it alone and open another.
            try:
                if identity(self.path) != self._identity:
                    raise DataError(f"{self.path}: was changed while in use", hint="run the command again")
                self._h5 = h5py.File(self.path, "r", locking=False)
            except OSError as error:
                raise DataError(f"{self.path}: cannot be opened any more ({error})") from error
            self._owner = os.getpid()
            self._closing = weakref.finalize(self, _close, self._h5, self._owner)
            self._readers = {}
        return self._h5

    def _reader(self, key: str) -> CheckedReader:
        h5 = self._handle()
        if key not in self._readers:
            self._readers[key] = CheckedReader(h5[key])
        return self._readers[key]

    def _read_prices(self) -> np.ndarray:
        prices = self._handle()[PRICES][()]
        if not (np.isfinite(prices).all() and (prices > 0).all()):
            raise DataError(f"{self.path}: prices must be finite and above 0", hint=_HINT_REBUILD)
        return prices

    def _read_range(self, split: str, name: str, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Rows start .. stop-1, into `out` if given."""
        key = f"{split}/{name}"
        if out is None:
            out = np.empty((stop - start, *self.layout.row_shape(name)), self.layout.dtypes[name])
        try:
            if stop > start:
                self._reader(key).read(start, stop, out)
            return out
        except (OSError, RuntimeError) as error:
            if isinstance(error, OSError) and error.errno in DISK_FAILS:
                self.close()
                what, hint = (
                    os.strerror(error.errno),
                    "its disk fails or went away; run the command again when it is back",
                )
            else:
                what, hint = str(error), "the file is damaged; build it again from its source"
            raise DataError(f"{self.path}: {key}: rows {start} to {stop} cannot be read ({what})", hint=hint) from error

    def _read_rows(self, split: str, name: str, index: np.ndarray, room: np.ndarray | None) -> np.ndarray:
        if room is None or len(room) < len(index):
            room = np.empty((len(index), *self.layout.row_shape(name)), self.layout.dtypes[name])
        out = room[: len(index)]
        order = np.argsort(index, kind="stable")
        wanted = index[order]
        in_order = bool((order[1:] > order[:-1]).all())
        most = max(1, _MERGE_BYTES // self.layout.row_bytes(name))
        begin = 0
        while begin < len(wanted):
            end = _stretch_end(wanted, begin) if in_order else begin
            if end - begin >= _STRETCH_ROWS:  # the loader's case: no copy in between
                self._read_range(split, name, int(wanted[begin]), int(wanted[end - 1]) + 1, out[begin:end])
            else:
                end = _run_end(wanted, begin, most)
                first = int(wanted[begin])
                block = self._read_range(split, name, first, int(wanted[end - 1]) + 1)
                out[order[begin:end]] = block[wanted[begin:end] - first]
            begin = end
        return out


def _close(h5: h5py.File, owner: int) -> None:
    """At the latest when the process ends. If the disk went away, closing would fail, and libhdf5 would then crash the
    process at its end; so it is given something else to close. Other handles of the file share the descriptor.
    """
    if owner != os.getpid() or not h5:
        return
    descriptor = h5.id.get_vfd_handle()
    try:
        os.close(os.dup(descriptor))
    except OSError:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, descriptor, inheritable=False)
        os.close(nothing)
    h5.close()


def _stretch_end(wanted: np.ndarray, begin: int) -> int:
    """End of the consecutive row numbers from `begin`."""
    gaps = np.flatnonzero(np.diff(wanted[begin:]) != 1)
    return begin + int(gaps[0]) + 1 if len(gaps) else len(wanted)


def _run_end(wanted: np.ndarray, begin: int, most: int) -> int:
    """End of the run of sorted row numbers from `begin` that is worth one read of at most `most` rows."""
    limit = int(np.searchsorted(wanted, wanted[begin] + most))
    gaps = np.flatnonzero(np.diff(wanted[begin:limit]) > _MERGE_GAP_ROWS)
    return begin + int(gaps[0]) + 1 if len(gaps) else max(begin + 1, limit)
