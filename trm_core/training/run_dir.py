"""The run directory: who may write in it, its file names, and `status.json`, which always tells how far a run got."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from trm_core.errors import WITH_LOCKS, CheckpointError, ResourceError, UsageError

CONFIG = "config.yaml"
STATUS = "status.json"
METRICS = "metrics.jsonl"
DATASET = "dataset.json"
ENVIRONMENT = "environment.json"
DIFF = "uncommitted.diff"
EVALUATION = "evaluation.json"
LOG = "log.txt"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"

_REFRESH_S = 5.0  # between two writes of the status of a run under way
_WATCH_S = 15.0


def write_atomic(path: Path, text: str) -> None:
    """Write a small file so that a reader, or a crash, finds the old or the new content, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ResourceError(
            f"cannot write {path}: {error.strerror}", hint="free some disk space, or check permissions"
        ) from error


def remove_halves(folder: Path, *names: str) -> None:
    """Remove what processes killed inside `write_atomic` left behind of these files."""
    for name in names:
        for half in folder.glob(f".{name}.*"):
            half.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON. NaN and infinity, which JSON lacks, become null."""
    write_atomic(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def new_run_path(name: str, root: Path = Path("runs")) -> Path:
    """runs/<name>-<time>, with a counter if two runs start in the same second."""
    base = root / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, n = base, 1
    while path.exists():
        n += 1
        path = base.with_name(f"{base.name}-{n}")
    return path


def newest_run(root: Path = Path("runs")) -> Path:
    """The run directory under `root` that was written to last."""
    runs = [p.parent for p in root.glob(f"*/{STATUS}")] if root.is_dir() else []
    if not runs:
        raise UsageError(f"no run directory under {root}/", hint="name one, or train first: trm train --config ...")
    return max(runs, key=lambda run: (run / STATUS).stat().st_mtime)


def require_run(path: Path) -> Path:
    """`path`, if it is a run directory. Otherwise raises CheckpointError."""
    if not (path / CONFIG).is_file():
        raise CheckpointError(
            f"{path} is not a run directory: it has no {CONFIG}", hint="name a folder written by trm train"
        )
    return path


def write_status(run: Path, state: str, step: int, total_steps: int, exit_code: int | None = None, **more: Any) -> None:
    """`state`: running, done, stopped, interrupted, failed."""
    record = {"state": state, "step": step, "total_steps": total_steps, "exit_code": exit_code}
    place = {"pid": os.getpid(), "host": platform.node()}
    write_json(run / STATUS, {**record, **place, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **more})


def keep_status(run: Path, total_steps: int, seconds: float = _REFRESH_S) -> Callable[[int], None]:
    """A function of the step that keeps the status of a run under way fresh, writing at most every `seconds`."""
    due = time.monotonic()

    def update(step: int) -> None:
        nonlocal due
        if time.monotonic() < due:
            return
        due = time.monotonic() + seconds
        # A full disk must not end the run; the next update may succeed again.
        with suppress(ResourceError):
            write_status(run, "running", step, total_steps)

    return update


def log_into(run: Path, log: Callable[[str], None]) -> Callable[[str], None]:
    """A `log` that also appends each message, with the time, to log.txt."""

    def both(message: str) -> None:
        log(message)
        # A line that cannot be written to a full disk must not end the run; it may be the very warning about the disk.
        with suppress(OSError), (run / LOG).open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")

    return both


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Create and lock the run directory. The lock dies with its process, so a killed run never has to be unlocked by
    hand.

    Raises UsageError if another process holds the lock or goes on writing without it, if the directory cannot be
    created or locked, or if a file that is written in place is not a regular file.
    """
    with ExitStack() as cleanup:
        try:
            run.mkdir(parents=True, exist_ok=True)
            for name in (LOCK, LOG, METRICS):
                _refuse_other_kinds(run / name)
            file = cleanup.enter_context((run / LOCK).open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{run} is in use by another process", hint="wait for it to end, or choose another training.run_dir"
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UsageError(
                f"{run} cannot be created, written or locked: {error.strerror}",
                hint=f"choose another training.run_dir, on {WITH_LOCKS}",
            ) from error
        _refuse_unlocked_user(run)
        remove_halves(run, CONFIG, STATUS, METRICS, DATASET, ENVIRONMENT, EVALUATION)
        yield


def _refuse_unlocked_user(run: Path) -> None:
    """Raise UsageError if a process that the lock does not show is training in `run`: the locks of some network file
    systems (sshfs, NFS mounted with nolock) do not reach other machines. It shows by its status, which stays the same
    if the process is gone; clocks of two machines are not compared.
    """
    before = _status_of_another(run)
    until = time.monotonic() + _WATCH_S
    while before is not None and time.monotonic() < until:
        time.sleep(_WATCH_S / 30)
        now = _status_of_another(run)
        if now is None:
            return  # it has just ended
        if now != before:
            raise UsageError(
                f"{run} is in use by process {before.get('pid')} on {before.get('host')}, although its lock is free",
                hint="wait for it to end, or choose another training.run_dir; this disk's locks stay on one machine",
            )


def _status_of_another(run: Path) -> dict[str, Any] | None:
    """What status.json says of a run under way on another machine. On this one, a free lock says that nobody trains."""
    path = run / STATUS
    try:
        status = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None  # a pipe would never end
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(status, dict) or status.get("state") != "running":
        return None
    here = platform.node()
    return None if status.get("host", here) == here else status


def _refuse_other_kinds(path: Path) -> None:
    """A run directory may be a stranger's: a write must not reach another file through a link, nor block on a pipe."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UsageError(f"{path} is not a regular file", hint="remove it: it will be written again")
