"""The group `encoders` of a capsule file: the arrays of the encoders that it was built with, `encoders/0/components`.

The file's manifest says what they belong to (`encoders`) and what their bytes must be (`encoder_hashes`). They are not
part of the content hash, which covers the samples: the same samples are the same content, whatever made them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from trm_core.data.fields import ENCODERS
from trm_core.data.store.datasets import Found
from trm_core.data.store.layout import dataset_hash
from trm_core.errors import DataError

HASHES = "encoder_hashes"
DTYPES = ("float32", "float64", "int64", "uint8")
RANKS = (1, 2)
MAX_BYTES = 2 << 30  # all arrays of a file together; the largest known take 33 MB per 64 dimensions
_CHUNK_VALUES = 1 << 17
_NUMBER = re.compile(r"[0-9]|[1-5][0-9]|6[0-3]")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_HINT = "build it again from its source with `trm build-capsules`"


@dataclass(frozen=True)
class EncoderRecord:
    """One encoder as a file keeps it. `entry`: JSON for the manifest; `arrays`: numeric, of rank 0 to 2, not empty."""

    entry: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


def write_encoder_arrays(path: Path, h5: h5py.File, encoders: Sequence[EncoderRecord]) -> dict[str, str]:
    """Write all arrays; returns the hash of each by its name, "0/components". A single number becomes an array [1]."""
    total = sum(array.nbytes for record in encoders for array in record.arrays.values())
    if total > MAX_BYTES:
        raise DataError(
            f"{path}: the arrays of its encoders have {total} bytes; at most {MAX_BYTES} are kept",
            hint="lower data.build.dim",
        )
    hashes = {}
    for number, record in enumerate(encoders):
        for name, given in record.arrays.items():
            key = f"{number}/{name}"
            array = stored_array(given)
            assert array.dtype.name in DTYPES, (key, array.dtype)
            assert array.ndim in RANKS, (key, array.shape)
            assert array.size, key
            assert _NAME.fullmatch(name), key
            *outer, inner = (min(size, _CHUNK_VALUES) for size in array.shape)
            chunks = (*(min(size, max(1, _CHUNK_VALUES // inner)) for size in outer), inner)
            h5.create_dataset(f"{ENCODERS}/{key}", data=array, chunks=chunks, fletcher32=True)
            hashes[key] = array_hash(array)
    return hashes


def stored_array(array: np.ndarray) -> np.ndarray:
    """Little-endian, in C order, of rank 1 or more."""
    return np.ascontiguousarray(np.atleast_1d(array), dtype=array.dtype.newbyteorder("<"))


def array_hash(array: np.ndarray) -> str:
    """The `dataset_hash` of an array as `stored_array` gives it."""
    return dataset_hash(array.dtype.name, array.shape, hashlib.sha256(array.data).hexdigest())


def refuse_names(path: Path, names: Sequence[str], *, numbers: bool) -> None:
    """DataError if an entry of `encoders` (`numbers`) or of one of its groups is not named as a builder names it."""
    for name in names:
        if not (_NUMBER if numbers else _NAME).fullmatch(name):
            raise DataError(f"{path}: unexpected {name!r:.80} in '{ENCODERS}'", hint=_HINT)


def refuse_sizes(path: Path, found: Sequence[Found]) -> None:
    """DataError for an empty array, or for more bytes than are ever read."""
    for dataset in found:
        if 0 in dataset.shape:
            raise DataError(f"{path}: {dataset.name} is empty", hint=_HINT)
    total = sum(dataset.logical_bytes for dataset in found)
    if total > MAX_BYTES:
        raise DataError(
            f"{path}: the arrays of its encoders have {total} bytes; at most {MAX_BYTES} are read", hint=_HINT
        )


def check_hashes(where: str, declared: Any, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """What is wrong, a line each: every array must have the hash that is declared for it, and none may be missing."""
    hashes = declared if isinstance(declared, dict) else {}
    return [
        f"{where}{key}: its bytes are not those that were written (sha256 differs)"
        for key in sorted(set(arrays) | set(hashes))
        if key not in arrays or array_hash(stored_array(arrays[key])) != hashes.get(key)
    ]
