"""The shapes of one capsule file, and what is derived from them: which fields, what shape, how chunked, what hash.

Shared by writer (from its arguments), guard (from the file) and reader. Symbols as in `trm_core.data.fields`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from trm_core.data.fields import FIELDS

_CHUNK_BYTES = 1 << 20
_SMALL_CHUNK_BYTES = 16 << 10
_BLOCK_ROWS = 64
ATTRIBUTES_HASH = "attributes_sha256"


@dataclass(frozen=True)
class Layout:
    """Sizes of a file's axes and the dtype of each field it has."""

    num_capsules: int  # k
    dim: int  # D
    num_children: int  # m; 0: no children
    checksum_dim: int  # R; 0: no checksums
    label_rank: int  # 0: none, 1: [N], 2: [N, k]
    dtypes: Mapping[str, str]  # field -> numpy dtype name, in the order of FIELDS

    def row_shape(self, field: str) -> tuple[int, ...]:
        """Shape of one row of the field, without N."""
        sizes = {"k": self.num_capsules, "D": self.dim, "m": self.num_children, "R": self.checksum_dim}
        rank = self.label_rank if field == "labels" else FIELDS[field].ranks[0]
        return tuple(sizes[axis] for axis in FIELDS[field].axes_of_rank(rank)[1:])

    def row_bytes(self, field: str) -> int:
        """Stored bytes of one row of the field."""
        return prod(self.row_shape(field)) * np.dtype(self.dtypes[field]).itemsize

    @property
    def bytes_per_row(self) -> int:
        """Stored bytes of one sample, all fields together."""
        return sum(self.row_bytes(field) for field in self.dtypes)


def chunk_rows(row_bytes: int) -> int:
    """Rows of one HDF5 chunk: 64, halved until they fit into 1 MB, or a multiple of 64 where 64 rows are under 16 KB.

    The loader shuffles blocks of 64 rows: a block is then one read, and no chunk has to be read for two blocks. Only
    tiny rows share larger chunks, because their index would be larger than the data.
    """
    if row_bytes * _BLOCK_ROWS > _CHUNK_BYTES:
        rows = _BLOCK_ROWS
        while rows > 1 and row_bytes * rows > _CHUNK_BYTES:
            rows //= 2
        return rows
    blocks = max(1, _SMALL_CHUNK_BYTES // (row_bytes * _BLOCK_ROWS))
    return blocks * _BLOCK_ROWS


def dataset_hash(dtype: str, shape: tuple[int, ...], digest: str) -> str:
    """sha256 that identifies a dataset: its dtype, its shape and the sha256 of its little-endian bytes in row order."""
    return hashlib.sha256(f"{dtype} {'x'.join(map(str, shape))} {digest}".encode()).hexdigest()


def attributes_hash(rows: str, manifest: str) -> str:
    """sha256 of the texts of both attributes, for the attribute ATTRIBUTES_HASH."""
    return hashlib.sha256(f"{rows}\n{manifest}".encode()).hexdigest()


def content_hash(dataset_hashes: Mapping[str, str]) -> str:
    """sha256 over all datasets' hashes, in the order of their names."""
    lines = "".join(f"{name} {dataset_hashes[name]}\n" for name in sorted(dataset_hashes))
    return hashlib.sha256(lines.encode()).hexdigest()
