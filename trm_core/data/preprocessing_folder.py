"""Recorded encoders stored outside a capsule file: `preprocessing.json` and `preprocessing.safetensors`.

Beside an exported model they say how raw samples become capsules. Nothing is pickled. Each file is written under a
temporary name, fsynced and renamed, the JSON last: it holds the hash of every array, so that a mixture of two saves or
a changed byte is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trm_core.data.fields import ENCODERS
from trm_core.data.store.encoder_arrays import (
    DTYPES,
    HASHES,
    MAX_BYTES,
    RANKS,
    EncoderRecord,
    array_hash,
    check_hashes,
    stored_array,
)
from trm_core.data.store.partial import fsync_folder, write_error
from trm_core.errors import DataError

DOCUMENT = "preprocessing.json"
ARRAYS = "preprocessing.safetensors"
FORMAT = "trm-preprocessing"
SCHEMA_VERSION = 1
_MAX_DOCUMENT_BYTES = 16 << 20
_MAX_HEADER_BYTES = 1 << 20
_HINT = "save it again from the capsule file, or export the model again"


def write_preprocessing(folder: Path, encoders: Sequence[EncoderRecord]) -> None:
    """Write both files, creating the folder if necessary. Raises `DataError` or `ResourceError` if that fails."""
    from safetensors.numpy import save

    arrays = {
        f"{number}/{name}": stored_array(array)
        for number, record in enumerate(encoders)
        for name, array in record.arrays.items()
    }
    document = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        ENCODERS: [dict(record.entry) for record in encoders],
        HASHES: {name: array_hash(array) for name, array in arrays.items()},
    }
    document["sha256"] = _document_hash(document)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / ARRAYS, save(arrays))
        _replace(folder / DOCUMENT, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
        fsync_folder(folder)
    except OSError as error:
        raise write_error(error, folder) from error


def read_preprocessing(folder: Path) -> tuple[list[Any], dict[str, np.ndarray]]:
    """The entries and the arrays ("0/components"). Raises `DataError` for missing, damaged or foreign files."""
    path = folder / DOCUMENT
    try:
        document = json.loads(_read(path, _MAX_DOCUMENT_BYTES))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({str(error)[:200]})", hint=_HINT) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError(f"{path}: is not a recorded preprocessing (no format = {FORMAT})", hint=_HINT)
    version = document.get("schema_version")
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise DataError(
            f"{path}: has schema version {version!r:.40}; this version of trm reads up to {SCHEMA_VERSION}",
            hint="upgrade trm, or save it again",
        )
    if document.get("sha256") != _document_hash(document):
        raise DataError(f"{path}: is not what was written (sha256 differs)", hint=_HINT)
    if not isinstance(document.get(ENCODERS), list):
        raise DataError(f"{path}: {ENCODERS} is not a list", hint=_HINT)
    arrays = _read_arrays(folder / ARRAYS)
    for message in check_hashes(f"{folder / ARRAYS}: ", document.get(HASHES), arrays):
        raise DataError(message, hint=_HINT)
    return document[ENCODERS], arrays


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = _read(path, MAX_BYTES + _MAX_HEADER_BYTES)
    if int.from_bytes(data[:8], "little") > _MAX_HEADER_BYTES:
        raise DataError(f"{path}: has a header of over {_MAX_HEADER_BYTES} bytes", hint=_HINT)
    try:
        arrays = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:  # KeyError: a dtype that NumPy does not have
        raise DataError(f"{path}: is damaged or not a safetensors file ({str(error)[:200]})", hint=_HINT) from error
    for name, array in arrays.items():
        if array.dtype.name not in DTYPES or array.ndim not in RANKS or not array.size:
            raise DataError(f"{path}: {name!r:.80} is {array.dtype} {list(array.shape)}", hint=_HINT)
    return arrays


def _document_hash(document: dict[str, Any]) -> str:
    """SHA-256 of the document without its own hash, in canonical JSON."""
    rest = {name: value for name, value in document.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read(path: Path, limit: int) -> bytes:
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file", hint="it is written by RecordedEncoder.save")
        size = path.stat().st_size
        if size > limit:
            raise DataError(f"{path}: has {size} bytes; at most {limit} are read", hint=_HINT)
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
