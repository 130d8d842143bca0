"""The file a writer writes before it is complete: `PATH.partial-<pid>`, locked, renamed at the end or removed.

`PartialFile` is handed to h5py as a Python file object. HDF5 does not open the path itself because, when a write fails
(disk full), libhdf5 keeps the unwritten data, fails again at every flush and crashes the process at exit. Here the
first failure is kept in `error`, later writes are dropped, HDF5 closes normally, and the writer reports the error.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from trm_core.errors import DataError, ResourceError, TrmError

if sys.platform != "win32":
    import fcntl

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # how file systems refuse to fsync a folder


def write_error(error: OSError, path: Path) -> TrmError:
    """The error to raise when `path` cannot be written."""
    if error.errno in _FULL:
        return ResourceError(
            f"{path}: no room on the disk ({os.strerror(error.errno or 0)})",
            hint="free some space, or write to another disk",
        )
    reason = error.strerror or error
    return DataError(f"{path}: cannot be written ({reason})", hint="check the folder and its permissions")


class PartialFile:
    """A locked temporary file beside `path`, with the methods h5py needs of a file object.

    Raises DataError or ResourceError if it cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
        self.error: OSError | None = None
        self._position = 0
        self._made_folders = _make_folders(path.parent)
        try:
            remove_stale(path)
            self._fd = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        except FileExistsError:
            raise DataError(f"{path}: another writer of this process is already writing it") from None
        except OSError as error:
            self._remove_folders()
            raise write_error(error, path) from error
        _try_lock(self._fd)

    # --- file object for h5py ---

    def read(self, size: int) -> bytes:
        os.lseek(self._fd, self._position, os.SEEK_SET)
        data = os.read(self._fd, size)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: os.fstat(self._fd).st_size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        os.lseek(self._fd, self._position, os.SEEK_SET)
        data = os.read(self._fd, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def write(self, data: memoryview) -> int:
        view = memoryview(data)
        written = 0
        try:
            os.lseek(self._fd, self._position, os.SEEK_SET)
            while self.error is None and written < len(view):
                written += os.write(self._fd, view[written:])
        except OSError as error:
            self.error = error
        self._position += len(view)
        return len(view)

    def truncate(self, size: int) -> int:
        try:
            if self.error is None:
                os.ftruncate(self._fd, size)
        except OSError as error:
            self.error = error
        return size

    def flush(self) -> None:
        """Nothing is buffered here."""

    # --- end of its life ---

    def check(self) -> None:
        """Raise the first error of the writes so far, if there was one."""
        if self.error is not None:
            raise write_error(self.error, self.path) from self.error

    def commit(self, *, overwrite: bool) -> None:
        """Make it durable under its real name. HDF5 must have closed it."""
        self.check()
        try:
            os.fsync(self._fd)
            if not overwrite and self.path.exists():
                raise DataError(f"{self.path}: appeared while it was being written", hint="choose another name")
            os.replace(self.partial, self.path)
            fsync_folder(self.path.parent)
        except OSError as error:
            raise write_error(error, self.path) from error
        self._close()

    def discard(self) -> None:
        """Remove it, and the folders that were made for it."""
        self._close()
        self.partial.unlink(missing_ok=True)
        self._remove_folders()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _remove_folders(self) -> None:
        for folder in reversed(self._made_folders):
            try:
                folder.rmdir()
            except OSError:  # somebody else put something there
                return


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable, where the file system can: SMB shares and some FUSE mounts refuse."""
    if sys.platform == "win32":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
    finally:
        os.close(fd)


def remove_stale(path: Path) -> list[Path]:
    """Remove partial files of `path` whose writers were killed; returns them."""
    removed = []
    for partial in path.parent.glob(f"{_escape(path.name)}.partial-*"):
        pid = partial.name.rpartition("-")[2]
        # Processes in a container often get the same pid each time: our own pid may be a dead writer's too.
        if pid.isdecimal() and (int(pid) == os.getpid() or not _alive(int(pid))) and _lock_is_free(partial):
            partial.unlink(missing_ok=True)
            removed.append(partial)
    return removed


def _escape(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _make_folders(folder: Path) -> list[Path]:
    """Create `folder` with its parents; returns those that were created, outermost first."""
    missing = []
    probe = folder
    while not probe.exists() and probe != probe.parent:
        missing.append(probe)
        probe = probe.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(error, folder) from error
    return missing[::-1]


def _alive(pid: int) -> bool:
    if sys.platform == "win32":
        return True  # an open file cannot be removed there anyway
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _try_lock(fd: int) -> bool:
    """Take the lock that says "in use"; it dies with the process. File systems without locks count as taken."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _lock_is_free(partial: Path) -> bool:
    try:
        fd = os.open(partial, os.O_RDWR)
    except OSError:
        return False
    try:
        return _try_lock(fd)
    finally:
        os.close(fd)
