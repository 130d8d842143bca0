"""`data.source`: raw data built into the cache the first time, found there afterwards.

The cached file's name holds a hash of the source's content and of everything that decides the result, so a changed
source or setting gives another file, never a stale one.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from trm_core.config.schema import DataConfig
from trm_core.data.build.fingerprint import build_fingerprint, source_sha256
from trm_core.data.build.pipeline import build_under_lock
from trm_core.data.build.records import Log, Progress, silent
from trm_core.data.build.work import locked
from trm_core.data.store.reader import open_capsules
from trm_core.errors import ConfigError, DataError, UsageError

_ANOTHER = "set TRM_CACHE or data.cache_dir to a writable folder"


def cache_folder(data: DataConfig) -> Path:
    """`data.cache_dir`, else $TRM_CACHE, else ~/.cache/trm. Raises ConfigError where there is no home."""
    try:
        return Path(data.cache_dir or os.environ.get("TRM_CACHE") or "~/.cache/trm").expanduser()
    except RuntimeError as error:
        raise ConfigError("there is no home folder to keep the built data in", hint=_ANOTHER) from error


def cached_path(data: DataConfig) -> Path:
    """Where the capsule file of `data.source` lies once it is built. Raises ConfigError or DataError."""
    if data.source is None:
        raise ConfigError("data.source is not set: there is nothing to build")
    if data.source != "digits" and not Path(data.source).exists():
        raise DataError(f"{data.source}: no such file or folder", hint="set data.source to your raw data, or 'digits'")
    key = build_fingerprint([source_sha256(data.source)], data.build)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(data.source).stem) or "source"
    return cache_folder(data) / f"{stem}-{key[:16]}.h5"


def ensure_built(data: DataConfig, *, progress: Progress | None = None, log: Log | None = None) -> Path:
    """Path of the capsule file of `data.source`, built now if the cache lacks it.

    Several processes may ask at once: one builds, the others wait for it. A cached file that does not open is built
    again, with a log line. Raises what `build_capsules` raises.
    """
    path, say = cached_path(data), log or silent
    if _usable(path, say):
        say(f"using {path}, built earlier from {data.source}")
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UsageError(f"{path.parent} cannot be created: {error.strerror}", hint=_ANOTHER) from error
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path.parent} cannot be written", hint=_ANOTHER)
    with locked(path.with_name(path.name + ".lock"), say, wait=True):
        if not _usable(path, silent):
            build_under_lock([str(data.source)], path, data.build, progress=progress, overwrite=True, log=say)
    return path


def _usable(path: Path, log: Log) -> bool:
    if not path.exists():
        return False
    try:
        open_capsules(path).close()
    except DataError as error:
        log(f"{path}: cannot be used ({error.message}); building it again")
        return False
    return True
