"""The work directory beside the output: encoded chunks and fitted state, so that a killed build can resume.

`<out>.work/` holds `fingerprint.json`, `fitted.npz` and one `chunk-000000.npz` per chunk (with workers also
`coder.pickle`, for them alone), each written under a temporary name and renamed. A lock beside it (held by the kernel,
so it dies with its process) keeps two builds of one output apart.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from trm_core.data.build.records import Log
from trm_core.errors import WITH_LOCKS, ResourceError, UsageError


class WorkDir:
    """Chunks of one build, keyed by a fingerprint of everything they depend on."""

    def __init__(self, folder: Path, fingerprint: str, log: Log) -> None:
        self.folder = folder
        marker = folder / "fingerprint.json"
        if folder.exists():
            found = _read_fingerprint(marker)
            if found != fingerprint:
                log(f"{folder}: left by a build with another source or configuration; starting from the beginning")
                shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not marker.exists():
            self._replace(marker, json.dumps({"fingerprint": fingerprint}).encode())

    def has_chunk(self, index: int) -> bool:
        return self._chunk(index).exists()

    def save_chunk(self, index: int, arrays: dict[str, np.ndarray]) -> None:
        self._save(self._chunk(index), arrays)

    def load_chunk(self, index: int, names: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
        """Arrays of a chunk, all of them or only those named."""
        return _load(self._chunk(index), names)

    def save_fitted(self, arrays: dict[str, np.ndarray]) -> None:
        self._save(self.folder / "fitted.npz", arrays)

    def load_fitted(self) -> dict[str, np.ndarray] | None:
        path = self.folder / "fitted.npz"
        return _load(path, None) if path.exists() else None

    def save_coder(self, pickled: bytes) -> Path:
        """Write what the workers of this build encode with; returns its path. No later build reads it."""
        path = self.folder / "coder.pickle"
        self._replace(path, pickled)
        return path

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _chunk(self, index: int) -> Path:
        return self.folder / f"chunk-{index:06d}.npz"

    def _save(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        temporary = path.with_suffix(".tmp")
        with disk_errors(path):
            with open(temporary, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)

    def _replace(self, path: Path, content: bytes) -> None:
        temporary = path.with_suffix(".tmp")
        with disk_errors(path):
            temporary.write_bytes(content)
            os.replace(temporary, path)


def _read_fingerprint(marker: Path) -> str | None:
    try:
        return str(json.loads(marker.read_text())["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _load(path: Path, names: tuple[str, ...] | None) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        wanted = archive.files if names is None else [name for name in names if name in archive.files]
        return {name: archive[name] for name in wanted}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk into a `ResourceError`, and a path that may not be written into a `UsageError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"{path}: the disk is full", hint="free some space and run the command again: it will continue"
            ) from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise UsageError(
                f"{path}: cannot be written ({error.strerror})", hint="choose another output path"
            ) from None
        raise


@contextmanager
def locked(path: Path, log: Log, *, wait: bool) -> Iterator[None]:
    """Hold `path` as a lock file; it is removed afterwards.

    With `wait` a second process waits for the first; without, it gets a `UsageError`.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path, log, wait=wait)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, log: Log, *, wait: bool) -> int:
    said = False
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder removes the file: a lock on a removed file guards nothing.
            if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except BlockingIOError:
            if not wait:
                os.close(descriptor)
                raise UsageError(
                    f"{path}: another process is building this output", hint="wait for it, or choose another --out"
                ) from None
            if not said:
                log(f"waiting for another process that builds {path.with_suffix('').name}")
                said = True
            time.sleep(0.2)
        except OSError as error:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise UsageError(f"{path}: cannot be locked ({error.strerror})", hint=f"choose {WITH_LOCKS}") from error
        os.close(descriptor)
