"""Tensors out of a `.pt` file: the only `torch.load` of the project.

A `.pt` is a pickle in a zip; `weights_only=True` admits tensors and plain containers only, and loading is never tried
without it. Before that the zip itself is checked, and the tensors are mapped from the file instead of read, so they
cannot be larger than it.
"""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from trm_core.errors import DataError

_MAX_PICKLE_BYTES = 1 << 20  # some hundred tensors need less than 100 KB
_MAX_ENTRIES = 4096

# What torch.load raises on files it refuses or cannot parse.
_LOAD_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
)


def load_tensors(path: Path, hint: str) -> tuple[Any, int]:
    """What the file holds, and its size in bytes. Raises DataError for damaged files and anything but tensors and plain
    containers; `hint` says how to save it.
    """
    size = _check_zip(path, hint)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on odd pickles; the answer here is yes or no
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True), size
    except pickle.UnpicklingError as error:
        raise DataError(f"{path}: holds something other than tensors; it was not loaded", hint=hint) from error
    except _LOAD_ERRORS as error:
        raise DataError(f"{path}: is damaged or not a PyTorch file ({_first_line(error)})", hint=hint) from error


def _check_zip(path: Path, hint: str) -> int:
    """Refuse what is not a plain, uncompressed zip of modest structure; returns the file's size."""
    try:
        if path.is_dir():
            raise DataError(f"{path}: is a folder, not a .pt file")
        if not path.is_file():
            raise DataError(f"{path}: {'is not a regular file' if path.exists() else 'no such file'}")
        size = path.stat().st_size
        if size == 0:
            raise DataError(f"{path}: is empty", hint=hint)
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise DataError(f"{path}: is not a .pt file of torch.save (or of one before 1.6)", hint=hint) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(entries) > _MAX_ENTRIES:
        raise DataError(f"{path}: has {len(entries)} entries; tensors only need a few", hint=hint)
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise DataError(f"{path}: entry {entry.filename!r} is compressed, which torch.save never does", hint=hint)
        if entry.filename.endswith(".pkl") and entry.file_size > _MAX_PICKLE_BYTES:
            raise DataError(f"{path}: its pickle has {entry.file_size} bytes: it holds more than tensors", hint=hint)
    if sum(entry.file_size for entry in entries) > size:
        raise DataError(f"{path}: its entries overlap", hint=hint)
    return size


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
