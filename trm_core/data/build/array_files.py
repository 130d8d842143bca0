"""Arrays in npy, npz and HDF5 files, read in blocks of rows: never a whole array, never a pickle.

npy files are read with plain file reads rather than a memory map, whose pages would count as the process's memory.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from trm_core.data.store.datasets import Found, examine_dataset, refuse_total
from trm_core.data.store.guard import refuse_non_hdf5
from trm_core.errors import DataError

_BLOCK_BYTES = 8 << 20
_H5_SUFFIXES = (".h5", ".hdf5", ".hdf")
_H5_DTYPES = ("float16", "float32", "float64", "uint8", *(f"int{bits}" for bits in (8, 16, 32, 64)), "bool")


class ArrayFile(Protocol):
    """One named array of a file."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def rows(self) -> Iterator[np.ndarray]: ...


def open_arrays(path: Path) -> dict[str, ArrayFile]:
    """The arrays of a file by name ("array" for an npy file). Raises `DataError` for what is not plain numbers."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return {"array": NpyArray(path, None, "array")}
        if suffix == ".npz":
            return {
                name.removesuffix(".npy"): NpyArray(path, name, name.removesuffix(".npy")) for name in _members(path)
            }
        if suffix in _H5_SUFFIXES:
            return dict(_h5_arrays(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    raise DataError(f"{path}: is not an npy, npz or h5 file")


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]


class MemoryArray:
    """An array that is already in memory (or mapped)."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self.name, self.shape, self.dtype = name, values.shape, values.dtype
        self._values = values

    def rows(self) -> Iterator[np.ndarray]:
        return iter(self._values)


class NpyArray:
    """An npy file, or a member of an npz file."""

    def __init__(self, path: Path, member: str | None, name: str) -> None:
        self._path, self._member, self.name = path, member, name
        with self._open() as file:
            header = self._header(file)
        self.shape, self.dtype = header.shape, header.dtype
        if not self.shape:
            raise DataError(f"{path}: {name} holds one number, not an array")

    def rows(self) -> Iterator[np.ndarray]:
        """Rows one by one, in order. Raises `DataError` if the file ends early."""
        row_shape = self.shape[1:]
        row_bytes = int(np.prod(row_shape, dtype=np.int64)) * self.dtype.itemsize
        step = max(1, _BLOCK_BYTES // max(1, row_bytes))
        with self._open() as file:
            self._header(file)
            for begin in range(0, self.shape[0], step):
                count = min(step, self.shape[0] - begin)
                data = self._read(file, count * row_bytes)
                yield from np.frombuffer(data, dtype=self.dtype).reshape(count, *row_shape)

    def _open(self) -> IO[bytes]:
        if self._member is None:
            return open(self._path, "rb")
        archive = zipfile.ZipFile(self._path)
        member = archive.open(self._member)
        archive.close()  # the member keeps the file open until it is closed itself
        return member

    def _header(self, file: IO[bytes]) -> _Header:
        where = f"{self._path}: {self.name}"
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
        except (ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{where}: is damaged or not a NumPy array ({error})") from None
        if dtype.kind not in "fiubU":
            text = dtype.kind in "OS"
            raise DataError(
                f"{where}: holds {dtype}, expected numbers" + (" or text" if text else ""),
                hint="Python objects are never loaded: save numbers with a numeric dtype"
                + (", names of classes with .astype(str)" if text else ""),
            )
        if fortran and len(shape) > 1:
            raise DataError(f"{where}: is in Fortran order", hint="save numpy.ascontiguousarray(x) instead")
        return _Header(tuple(shape), fortran, dtype)

    def _read(self, file: IO[bytes], size: int) -> bytes:
        parts: list[bytes] = []
        try:
            while size:
                part = file.read(size)
                if not part:
                    raise DataError(f"{self._path}: {self.name} ends early: the file is truncated")
                parts.append(part)
                size -= len(part)
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise DataError(f"{self._path}: {self.name} is damaged ({error})") from None
        return parts[0] if len(parts) == 1 else b"".join(parts)


class H5Array:
    """A dataset of an untrusted HDF5 file, opened for each pass."""

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._path, self.name, self.shape, self.dtype = path, name, shape, dtype

    def rows(self) -> Iterator[np.ndarray]:
        import h5py

        row_bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        step = max(1, _BLOCK_BYTES // max(1, row_bytes))
        try:
            with h5py.File(self._path, "r", locking=False) as file:
                dataset = file[self.name]
                for begin in range(0, self.shape[0], step):
                    yield from dataset[begin : begin + step]
        except OSError as error:
            raise DataError(f"{self._path}: {self.name} is damaged ({error})") from None


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
    except zipfile.BadZipFile:
        raise DataError(f"{path}: is not an npz file, or is truncated") from None
    if not names:
        raise DataError(f"{path}: holds no arrays")
    return names


def _h5_arrays(path: Path) -> Mapping[str, ArrayFile]:
    """The datasets at the root of an untrusted HDF5 file. What cannot be read safely is refused, not skipped."""
    import h5py

    refuse_non_hdf5(path)
    found: dict[str, Found] = {}
    try:
        with h5py.File(path, "r", locking=False) as file:
            for raw in file.id:
                name = raw.decode("utf-8", "replace")
                if file.id.links.get_info(raw).type != h5py.h5l.TYPE_HARD:
                    raise DataError(
                        f"{path}: {name} is a soft or external link, which is never followed",
                        hint="copy the data itself",
                    )
                opened = h5py.h5o.open(file.id, raw)
                if isinstance(opened, h5py.h5d.DatasetID):
                    found[name] = examine_dataset(path, name, opened, _H5_DTYPES, range(1, 5))
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: damaged HDF5 structure ({error})") from None
    if not found:
        raise DataError(f"{path}: holds no datasets at its root")
    refuse_total(path, list(found.values()))
    return {name: H5Array(path, name, each.shape, np.dtype(each.dtype)) for name, each in found.items()}
