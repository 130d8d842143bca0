"""What a built file depends on, as one hash: the bytes of its sources, the settings, the version of the builder."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path

from trm_core.config.schema import BuildConfig
from trm_core.data.build.arc import solutions_path
from trm_core.data.build.digits import digits_sha256
from trm_core.data.build.extras import is_pretrained, model_spec
from trm_core.data.fields import SCHEMA_VERSION
from trm_core.errors import DataError

# Increase it whenever the same source and settings would give other bytes.
# 3: files hold their encoders. A cached file of an earlier build lacks them and could not be used on raw samples, so a
# new fingerprint makes `data.source` build it again; its rows, and so its content hash, stay the same.
# 4: pictures with transparency are laid on white.
# 5: folds of whole groups; a hash of concepts; columns of several tables, and columns of one number; coarse sketches
# beside a wider kind. Files without any of these stay the same.
# 6: pictures are turned upright by their EXIF orientation; masks and prices of arrays are used; texts without spaces
# are cut; whole-number labels have no decimal point; empty rows of spreadsheets and hidden files are left out.
BUILD_VERSION = 6


def tool_version() -> str:
    """Version of the installed package, "source" when it runs from a checkout that is not installed."""
    try:
        return metadata.version("trm")
    except metadata.PackageNotFoundError:
        return "source"


def source_sha256(source: str) -> str:
    """SHA-256 of a file, of a folder (names and contents of its files, sorted), or of the embedded digits."""
    path = Path(source)
    if source == "digits" and not path.exists():
        return digits_sha256()
    if path.is_dir():
        state = hashlib.sha256()
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            state.update(f"{file.relative_to(path).as_posix()}\0{_file_sha256(file)}\n".encode())
        return state.hexdigest()
    beside = solutions_path(path)
    if beside is not None:  # part of what is read
        return hashlib.sha256(f"{_file_sha256(path)} {_file_sha256(beside)}".encode()).hexdigest()
    return _file_sha256(path)


def build_fingerprint(hashes: list[str], config: BuildConfig) -> str:
    """Hash of everything that decides the content of the file; the number of workers does not.

    A pretrained model on this disk counts by its content, one that is downloaded by its name. Raises `ConfigError` if
    the named model is not there.
    """
    settings = config.model_dump(mode="json", exclude={"workers"})
    if is_pretrained(config):
        settings["encoder_model"] = model_fingerprint(config)
    if config.encoders_of is not None:
        settings["encoders_of"] = _file_sha256(Path(config.encoders_of))
    parts = {
        "sources": hashes,
        "build": settings,
        "schema": SCHEMA_VERSION,
        "version": BUILD_VERSION,
        "tool": tool_version(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def model_fingerprint(config: BuildConfig) -> str:
    """The architecture and SHA-256 of a local file or folder, else the name; needs none of the encoders' packages."""
    spec = model_spec(config)
    return spec.name if spec.path is None else f"{spec.architecture or ''}:{source_sha256(str(spec.path.resolve()))}"


def _file_sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
