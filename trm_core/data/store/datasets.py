"""Look at one HDF5 dataset without reading it: is it stored in this file, plainly, and as large as it claims?

Used by the guard for every dataset of an untrusted file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from trm_core.errors import DataError

_LZF = 32000
_FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, _LZF)
_SHRINKING = (h5py.h5z.FILTER_DEFLATE, _LZF)
_MAX_CHUNK_BYTES = 64 << 20
_MAX_INFLATION = 100
_HARMLESS_BYTES = 64 << 20  # below this, any ratio is harmless: a mask of ones shrinks a thousandfold

_HINT_COPY = "copy the data itself into the file"
_HINT = "the file is damaged or hostile; build it again from its source"


@dataclass(frozen=True)
class Found:
    """One dataset of the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    logical_bytes: int
    stored_bytes: int


def examine_dataset(path: Path, name: str, dataset: Any, dtypes: Sequence[str], ranks: Sequence[int]) -> Found:
    """Check one `h5py.h5d.DatasetID`; DataError that names it if it is refused."""
    where = f"{path}: {name}"
    properties = dataset.get_create_plist()
    if properties.get_external_count():
        raise DataError(f"{where} keeps its data in another file", hint=_HINT_COPY)
    if properties.get_layout() == h5py.h5d.VIRTUAL:
        raise DataError(f"{where} is a virtual dataset, a view of other files", hint=_HINT_COPY)
    dtype = _dtype(where, dataset, dtypes)
    space = dataset.get_space()
    if space.get_simple_extent_type() != h5py.h5s.SIMPLE or space.get_simple_extent_ndims() not in ranks:
        raise DataError(
            f"{where} has rank {space.get_simple_extent_ndims()}; expected {' or '.join(map(str, ranks))}", hint=_HINT
        )
    shape = tuple(int(size) for size in space.get_simple_extent_dims())
    filters = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
    for code in filters:
        if code not in _FILTERS:
            raise DataError(
                f"{where} is compressed with HDF5 filter {code}", hint="write it uncompressed, or with gzip or lzf"
            )
    if properties.get_layout() == h5py.h5d.CHUNKED:
        chunk = prod(int(size) for size in properties.get_chunk()) * dtype.itemsize
        if chunk > _MAX_CHUNK_BYTES:
            raise DataError(f"{where} has chunks of {chunk} bytes; at most {_MAX_CHUNK_BYTES} are read", hint=_HINT)
    found = Found(name, shape, dtype.name, prod(shape) * dtype.itemsize, int(dataset.get_storage_size()))
    _refuse_empty_promise(where, found, shrinks=any(code in _SHRINKING for code in filters))
    return found


def refuse_total(path: Path, datasets: Sequence[Found]) -> None:
    """Refuse a file whose datasets together claim more stored bytes than the file has (overlapping storage)."""
    stored = sum(dataset.stored_bytes for dataset in datasets)
    size = path.stat().st_size
    if stored > size:
        raise DataError(f"{path}: its datasets claim {stored} stored bytes, but the file has {size}", hint=_HINT)


def _dtype(where: str, dataset: Any, allowed: Sequence[str]) -> np.dtype[Any]:
    expected = " or ".join(allowed)
    try:
        dtype = np.dtype(dataset.get_type().dtype)
    except TypeError as error:
        raise DataError(f"{where} has a type that is not {expected} ({error})", hint=_HINT) from error
    # An enumeration with other names than FALSE/TRUE carries metadata; so do references and strings.
    if dtype.name not in allowed or dtype.byteorder == ">" or dtype.metadata:
        raise DataError(f"{where} has dtype {dtype}; expected {expected}", hint="convert it, or build the file again")
    return dtype


def _refuse_empty_promise(where: str, found: Found, *, shrinks: bool) -> None:
    claim = f"{where} claims {found.logical_bytes} bytes of data but {found.stored_bytes} are stored"
    if not shrinks and found.stored_bytes < found.logical_bytes:
        raise DataError(claim, hint=_HINT)
    if found.logical_bytes > _HARMLESS_BYTES and found.logical_bytes > _MAX_INFLATION * found.stored_bytes:
        raise DataError(claim, hint=_HINT)
