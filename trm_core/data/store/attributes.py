"""Read the root attributes that make an HDF5 file a capsule file, with their sizes checked before they are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from trm_core.data.fields import FORMAT, SCHEMA_VERSION, SPLITS
from trm_core.data.store.layout import ATTRIBUTES_HASH, attributes_hash
from trm_core.errors import DataError

_MAX_TEXT_BYTES = 4096
_JSON_BYTES = {"rows": _MAX_TEXT_BYTES, "manifest": 16 << 20}  # larger ones are refused
_HINT_REBUILD = "build it again from its source with `trm build-capsules`"
_HINT_FOREIGN = "convert foreign HDF5 with `trm build-capsules FILE --out capsules.h5`"


@dataclass(frozen=True)
class Attributes:
    """What the root attributes say."""

    rows: dict[str, int]
    manifest: dict[str, Any]


def read_attributes(path: Path, h5: h5py.File) -> Attributes:
    """Read and check them. DataError if the file is foreign, too new or incomplete, or its manifest makes no sense."""
    if "format" not in h5.attrs or _text(path, h5, "format", _MAX_TEXT_BYTES) != FORMAT:
        raise DataError(f"{path}: is HDF5, but not a capsule file (no attribute format = {FORMAT})", hint=_HINT_FOREIGN)
    version = _number(path, h5, "schema_version")
    if version > SCHEMA_VERSION:
        raise DataError(
            f"{path}: has schema version {version}; this version of trm reads up to {SCHEMA_VERSION}",
            hint="upgrade trm, or build the file again",
        )
    if version < 1:
        raise DataError(f"{path}: has schema version {version}", hint=_HINT_REBUILD)
    if "complete" not in h5.attrs or _number(path, h5, "complete") != 1:
        raise DataError(f"{path}: is incomplete: writing it was interrupted", hint=_HINT_REBUILD)
    texts = {name: _text(path, h5, name, limit) for name, limit in _JSON_BYTES.items()}
    # A file written by another program may lack it.
    if ATTRIBUTES_HASH in h5.attrs:
        promised = _text(path, h5, ATTRIBUTES_HASH, _MAX_TEXT_BYTES)
        if attributes_hash(texts["rows"], texts["manifest"]) != promised:
            raise DataError(
                f"{path}: its manifest is not the one that was written (sha256 differs)", hint=_HINT_REBUILD
            )
    rows = _json(path, "rows", texts["rows"])
    for split, count in rows.items():
        if split not in SPLITS or type(count) is not int or count < 1:
            raise DataError(f"{path}: attribute rows says {split!r}: {count!r}", hint=_HINT_REBUILD)
    manifest = _json(path, "manifest", texts["manifest"])
    _check_manifest(path, manifest)
    return Attributes(rows, manifest)


def _check_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """The keys that the loader and the model read must be of the right kind; the others are only shown."""
    task = manifest.get("task", "classes")
    if task not in ("classes", "concepts"):
        raise DataError(f"{path}: manifest: task is {task!r}; expected classes or concepts", hint=_HINT_REBUILD)
    for key, least in (("num_classes", 1), ("concepts", 1), ("checksum_seed", 0)):
        value = manifest.get(key)
        if value is not None and (type(value) is not int or value < least):
            raise DataError(f"{path}: manifest: {key} is {value!r}; expected a whole number", hint=_HINT_REBUILD)
    names = manifest.get("class_names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise DataError(f"{path}: manifest: class_names is not a list of texts", hint=_HINT_REBUILD)


def _json(path: Path, name: str, text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: attribute {name} is not JSON ({error})", hint=_HINT_REBUILD) from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: attribute {name} is not a JSON object", hint=_HINT_REBUILD)
    return document


def _attribute(path: Path, h5: h5py.File, name: str) -> Any:
    if name not in h5.attrs:
        raise DataError(f"{path}: has no attribute {name}", hint=_HINT_REBUILD)
    return h5.attrs.get_id(name)


def _text(path: Path, h5: h5py.File, name: str, limit: int) -> str:
    attribute = _attribute(path, h5, name)
    kind = attribute.get_type()
    fixed = isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str()
    if not fixed or attribute.shape != ():
        raise DataError(f"{path}: attribute {name} is not one text of fixed length", hint=_HINT_REBUILD)
    if attribute.get_storage_size() > limit:
        raise DataError(
            f"{path}: attribute {name} has {attribute.get_storage_size()} bytes; at most {limit} are read",
            hint=_HINT_REBUILD,
        )
    try:
        return bytes(h5.attrs[name]).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: attribute {name} is not UTF-8", hint=_HINT_REBUILD) from error


def _number(path: Path, h5: h5py.File, name: str) -> int:
    attribute = _attribute(path, h5, name)
    kind = attribute.get_type()
    if not isinstance(kind, h5py.h5t.TypeIntegerID | h5py.h5t.TypeEnumID) or attribute.shape != ():
        raise DataError(f"{path}: attribute {name} is not one number", hint=_HINT_REBUILD)
    return int(np.asarray(h5.attrs[name]))
