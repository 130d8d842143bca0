"""Write a capsule file as a stream of rows: constant memory, hashed on the way, complete or not there at all.

Used by the builders. Rows of the splits may come in any order; within a split the order of `append` is the row order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import h5py
import numpy as np

from trm_core.data.fields import ENCODERS, FIELDS, FORMAT, IGNORE_LABEL, PRICES, SCHEMA_VERSION, SPLITS
from trm_core.data.store.encoder_arrays import HASHES, EncoderRecord, write_encoder_arrays
from trm_core.data.store.layout import (
    ATTRIBUTES_HASH,
    Layout,
    attributes_hash,
    chunk_rows,
    content_hash,
    dataset_hash,
)
from trm_core.data.store.partial import PartialFile
from trm_core.data.store.quarantine import trust
from trm_core.errors import DataError

# Attributes above 64 KB (a manifest with thousands of class names) need the file format of HDF5 1.8.
_LIBVER = ("v108", "v108")
_CACHE_BYTES = 4 << 20
# Version 2 added the encoders. Files without them are written as version 1, which older versions of trm read too.
_WITHOUT_ENCODERS = 1
_HINT_SAMPLE = "remove or repair this sample in the source"


class CapsuleWriter:
    """Context manager that writes `path`: `append` rows, then `close(manifest)`.

    The arguments declare the fields; every `append` must bring exactly these. Nothing is at `path` before `close` has
    succeeded, and nothing is left anywhere after an exception. Raises DataError if `path` exists and `overwrite` is
    false, if it cannot be written, or for impossible sizes; ResourceError if the disk is full.
    """

    def __init__(
        self,
        path: Path,
        *,
        num_capsules: int,
        dim: int,
        num_children: int = 0,
        checksum_dim: int = 0,
        label_rank: Literal[0, 1, 2] = 1,
        dtype: Literal["float16", "float32"] = "float16",
        with_parents: bool = False,
        with_mask: bool = False,
        with_modality: bool = False,
        with_ids: bool = False,
        prices: np.ndarray | None = None,
        encoders: Sequence[EncoderRecord] = (),
        overwrite: bool = False,
    ) -> None:
        path = Path(path)
        sizes = (("k", num_capsules, 1), ("D", dim, 1), ("m", num_children, 0), ("R", checksum_dim, 0))
        for name, size, least in sizes:
            if size < least:
                raise DataError(f"{path}: {name} must be at least {least}, got {size}")
        if path.is_dir():
            raise DataError(f"{path}: is a folder", hint="give the name of a file, e.g. capsules.h5")
        if path.exists() and not overwrite:
            raise DataError(f"{path}: exists already", hint="remove it, choose another name, or allow overwriting")
        present = {
            "sketches": True,
            "children": num_children > 0,
            "checksums": checksum_dim > 0,
            "labels": label_rank > 0,
            "parents": with_parents,
            "mask": with_mask,
            "modality": with_modality,
            "ids": with_ids,
        }
        dtypes = {
            name: dtype if field.is_embedding else field.dtypes[0] for name, field in FIELDS.items() if present[name]
        }
        self.path = path
        self.layout = Layout(num_capsules, dim, num_children, checksum_dim, label_rank, dtypes)
        self.rows: dict[str, int] = {}
        self._prices = None if prices is None else _checked_prices(path, prices, num_capsules)
        self._encoders = tuple(encoders)
        self._overwrite = overwrite
        self._largest_label = -1
        self._digests: dict[str, Any] = {}
        self._open = True
        self._sink = PartialFile(path)
        try:
            self._h5 = h5py.File(self._sink, "w", libver=_LIBVER, rdcc_nbytes=_CACHE_BYTES)
        except BaseException:
            self._sink.discard()
            raise

    def __enter__(self) -> CapsuleWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._open:
            self.abort()
            if kind is None:
                raise RuntimeError(f"{self.path}: CapsuleWriter was left without close(manifest); nothing was written")

    def append(self, split: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Add rows to a split. `arrays` holds every declared field with the same number of rows n >= 0.

        Embeddings may be any float or integer dtype and are converted; labels and the like must be integers, the mask
        booleans. Raises DataError that names field and row for a wrong shape or dtype, NaN, infinity, a label below 0
        other than -100, or parents that are out of range or form a cycle; then nothing of the call is written.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
        if set(arrays) != set(self.layout.dtypes):
            missing = sorted(set(self.layout.dtypes) - set(arrays))
            extra = sorted(set(arrays) - set(self.layout.dtypes))
            raise DataError(f"{self.path}: append to {split}: fields missing: {missing}, not declared: {extra}")
        done = self.rows.get(split, 0)
        checked = {name: self._checked(split, name, np.asarray(array), done) for name, array in arrays.items()}
        counts = {name: len(array) for name, array in checked.items()}
        if len(set(counts.values())) != 1:
            raise DataError(f"{self.path}: append to {split}: fields differ in their number of rows: {counts}")
        added = next(iter(counts.values()))
        if added == 0:
            return
        if "labels" in checked:
            self._largest_label = max(self._largest_label, int(checked["labels"].max()))
        for name in self.layout.dtypes:
            self._store(split, name, checked[name], done)
        self._sink.check()
        self.rows[split] = done + added

    def close(self, manifest: Mapping[str, Any]) -> None:
        """Finish the file and give it its name.

        `manifest` must be JSON without NaN; "counts", "content_hash", "dataset_hashes", "tool_version", "encoders" and
        "encoder_hashes" are filled in here. Raises DataError if there are no rows or labels reach num_classes;
        ResourceError if the disk is full.
        """
        try:
            document = self._manifest(manifest)
            attributes = self._h5.attrs
            attributes["format"] = _fixed(FORMAT)
            attributes["schema_version"] = np.int64(SCHEMA_VERSION if self._encoders else _WITHOUT_ENCODERS)
            rows, text = json.dumps(document["counts"]), json.dumps(document, allow_nan=False, ensure_ascii=False)
            attributes["rows"] = _fixed(rows)
            attributes["manifest"] = _fixed(text)
            attributes[ATTRIBUTES_HASH] = _fixed(attributes_hash(rows, text))
            self._h5.flush()
            attributes["complete"] = np.bool_(True)
            self._h5.close()
            self._sink.commit(overwrite=self._overwrite)
        except BaseException:
            self.abort()
            raise
        self._open = False
        trust(self.path)

    def abort(self) -> None:
        """Give up: remove everything that was written."""
        self._open = False
        try:
            self._h5.close()
        finally:
            self._sink.discard()

    def _store(self, split: str, name: str, array: np.ndarray, done: int) -> None:
        key = f"{split}/{name}"
        if key not in self._h5:
            shape = self.layout.row_shape(name)
            self._h5.create_dataset(
                key,
                shape=(0, *shape),
                maxshape=(None, *shape),
                chunks=(chunk_rows(self.layout.row_bytes(name)), *shape),
                dtype=self.layout.dtypes[name],
                fletcher32=True,  # reading a chunk that is not what was written fails
            )
            self._digests[key] = hashlib.sha256()
        dataset = self._h5[key]
        dataset.resize(done + len(array), axis=0)
        dataset[done:] = array
        self._digests[key].update(array.data)

    def _checked(self, split: str, name: str, array: np.ndarray, done: int) -> np.ndarray:
        """`array` in the stored dtype, C order; DataError if it may not be stored."""
        where = f"{self.path}: {split}/{name}"
        field = FIELDS[name]
        shape = self.layout.row_shape(name)
        if array.ndim == 0 or array.shape[1:] != shape:
            raise DataError(f"{where}: expected shape [n, {', '.join(map(str, shape))}], got {list(array.shape)}")
        allowed = "fiu" if field.is_embedding else ("b" if field.dtypes[0] == "bool" else "iu")
        if array.dtype.kind not in allowed:
            raise DataError(f"{where}: expected {' or '.join(field.dtypes)}, got {array.dtype}")
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(array, dtype=np.dtype(self.layout.dtypes[name]).newbyteorder("<"))
        if field.is_embedding:
            _refuse_non_finite(where, array, stored, done)
        elif name == "labels":
            bad = (stored < 0) & (stored != IGNORE_LABEL)
            _refuse_rows(where, bad, done, f"is a label below 0 (only {IGNORE_LABEL} may be)", stored)
        elif name == "parents":
            _refuse_parents(where, stored, done)
        elif name == "modality":
            _refuse_rows(where, stored < 0, done, "is below 0", stored)
        return stored

    def _manifest(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        if not self.rows:
            raise DataError(f"{self.path}: no samples were written", hint="check that the source is not empty")
        num_classes = manifest.get("num_classes")
        if num_classes is not None and self._largest_label >= num_classes:
            raise DataError(f"{self.path}: label {self._largest_label} does not fit num_classes={num_classes}")
        if self._prices is not None:
            self._h5.create_dataset(PRICES, data=self._prices, chunks=self._prices.shape, fletcher32=True)
            self._digests[PRICES] = hashlib.sha256(self._prices.data)
        hashes = {}
        for key, digest in self._digests.items():
            dataset = self._h5[key]
            hashes[key] = dataset_hash(dataset.dtype.name, dataset.shape, digest.hexdigest())
        counts = {split: self.rows[split] for split in SPLITS if split in self.rows}
        # Not those of a manifest that was copied from another file, whose arrays are not here.
        own = {name: value for name, value in manifest.items() if name not in (ENCODERS, HASHES)}
        if self._encoders:
            own[ENCODERS] = [dict(record.entry) for record in self._encoders]
            own[HASHES] = write_encoder_arrays(self.path, self._h5, self._encoders)
            self._sink.check()
        return {
            **own,
            "tool_version": tool_version(),
            "counts": counts,
            "dataset_hashes": hashes,
            "content_hash": content_hash(hashes),
        }


def tool_version() -> str:
    """The installed version of this package; "unknown" when it runs from a source tree."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and a reader does not need it

    try:
        return version("trm")
    except PackageNotFoundError:
        return "unknown"


def _fixed(text: str) -> np.ndarray:
    """A fixed-length HDF5 string: unlike a variable-length one its size is known before it is read."""
    data = text.encode()
    return np.array(data, dtype=h5py.string_dtype("utf-8", max(1, len(data))))


def _checked_prices(path: Path, prices: np.ndarray, k: int) -> np.ndarray:
    stored = np.ascontiguousarray(prices, dtype="<f4")
    if stored.shape != (k,):
        raise DataError(f"{path}: prices: expected shape [{k}], got {list(stored.shape)}")
    if not (np.isfinite(stored).all() and (stored > 0).all()):
        raise DataError(f"{path}: prices must be finite and above 0, got {stored.tolist()}")
    return stored


def _refuse_rows(where: str, bad: np.ndarray, done: int, what: str, values: np.ndarray) -> None:
    if bad.any():
        place = np.argwhere(bad)[0]
        raise DataError(f"{where}: row {done + int(place[0])}: {values[tuple(place)]} {what}", hint=_HINT_SAMPLE)


def _refuse_non_finite(where: str, array: np.ndarray, stored: np.ndarray, done: int) -> None:
    finite = np.isfinite(stored)
    if finite.all():
        return
    place = tuple(np.argwhere(~finite)[0])
    row = done + int(place[0])
    if np.isfinite(array[place]):
        raise DataError(
            f"{where}: row {row}: {array[place]} is beyond the range of {stored.dtype.name}",
            hint="store float32 (build.dtype: float32), or scale the embeddings",
        )
    raise DataError(f"{where}: row {row} holds {array[place]}", hint=_HINT_SAMPLE)


def _refuse_parents(where: str, parents: np.ndarray, done: int) -> None:
    k = parents.shape[1]
    _refuse_rows(where, (parents < -1) | (parents >= k), done, f"is no capsule's index (0 to {k - 1}, or -1)", parents)
    # Pointer jumping: after log2(k) doublings every ancestor chain of a forest has ended at -1.
    ancestors = parents
    for _ in range(k.bit_length()):
        beyond = np.take_along_axis(ancestors, np.maximum(ancestors, 0), axis=1)
        ancestors = np.where(ancestors >= 0, beyond, -1)
    _refuse_rows(where, ancestors >= 0, done, "is an ancestor of itself: parents go in a circle", parents)
