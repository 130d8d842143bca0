"""Examine an untrusted file in a child process first: a malformed one can crash the HDF5 library, not only fail in it.

The child runs the same guard as this process will. Files that this process wrote or has already probed are not probed
again (an interpreter with h5py takes about a quarter of a second to start).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from trm_core.child_process import STOP_SIGNALS, command_of
from trm_core.errors import DataError, ExitCode, StoppedEarly

_TIMEOUT_S = 120
_MEMORY_BYTES = 4 << 30
_HINT = "the file is damaged or hostile; build it again from its source"
# How often a child that was ended by a signal is started anew, because that says nothing about the file. SLURM signals
# every process of a job: this process got the signal too and is about to end by itself.
_AGAIN = 3

_Identity = tuple[int, int, int, int, int]
_trusted: set[_Identity] = set()
_under_way: dict[_Identity, subprocess.Popen[bytes]] = {}


def identity(path: Path) -> _Identity:
    """What distinguishes this file from any other, and from itself before a change."""
    status = os.stat(path)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def trust(path: Path) -> None:
    """Do not probe this file: this process wrote it."""
    _trusted.add(identity(path))


def begin(path: Path) -> None:
    """Start examining `path` for an `examine_in_child` that comes later. Raises OSError if it is not there."""
    key = identity(path)
    if key not in _trusted and key not in _under_way:
        _under_way[key] = _start(path)


def examine_in_child(path: Path) -> None:
    """Raise DataError if the guard refuses `path`, or if looking at it kills the child. Cheap the second time."""
    key = identity(path)
    if key in _trusted:
        return
    begun = _under_way.pop(key) if key in _under_way else _start(path)
    process, output, errors = _finished(begun, path)
    for _ in range(_AGAIN):
        if -process.returncode not in STOP_SIGNALS:
            break
        process, output, errors = _finished(_start(path), path)
    if -process.returncode in STOP_SIGNALS:
        raise StoppedEarly(f"asked to stop while looking at {path} (signal {-process.returncode})")
    if process.returncode == ExitCode.DATA:
        raise DataError(**json.loads(output))
    if process.returncode < 0:
        raise DataError(f"{path}: crashes the HDF5 library (signal {-process.returncode})", hint=_HINT)
    if process.returncode != ExitCode.OK:
        raise RuntimeError(f"probing {path} failed: {errors.decode(errors='replace')}")
    _trusted.add(key)


def _finished(process: subprocess.Popen[bytes], path: Path) -> tuple[subprocess.Popen[bytes], bytes, bytes]:
    """Wait for the child; returns it with what it wrote. DataError if it does not end in time."""
    try:
        output, errors = process.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise DataError(f"{path}: the HDF5 library hangs while reading its structure", hint=_HINT) from None
    finally:
        if process.returncode is None:
            process.kill()
            process.communicate()
    return process, output, errors


def _start(path: Path) -> subprocess.Popen[bytes]:
    command = command_of(__name__, "child", str(path))
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    # Signals to the process group (Ctrl-C) are for this process, which decides what becomes of its work.
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )


def child(path: str) -> int:
    """What runs in the child: the guard. A refusal goes to stdout as the arguments of the DataError."""
    from trm_core.data.store.guard import inspect_structure

    _limit_memory()
    try:
        inspect_structure(Path(path))
    except DataError as error:
        print(json.dumps({"message": error.message, "hint": error.hint}))
        return int(ExitCode.DATA)
    except MemoryError:
        print(json.dumps({"message": f"{path}: its structure does not fit into memory", "hint": _HINT}))
        return int(ExitCode.DATA)
    return int(ExitCode.OK)


def _limit_memory() -> None:
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = _MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(_MEMORY_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
