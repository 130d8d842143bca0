"""Every error a user can cause, each with its exit code and a hint how to fix it.

Raised anywhere in `trm_core`; turned into one line and an exit code in one place, `trm_cli.main`. Anything that is
not a `TrmError` is a bug of ours and ends with exit code 70.
"""

from __future__ import annotations

import errno
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every `trm` command."""

    OK = 0
    CHECK_FAILED = 1
    USAGE = 2
    CONFIG = 3
    DATA = 4
    DIVERGED = 5
    RESOURCES = 6
    INTERNAL = 70
    STOPPED_EARLY = 75
    INTERRUPTED = 130


class TrmError(Exception):
    """Base of the tree. `message` says what is wrong and where; `hint` says how to fix it."""

    exit_code: ExitCode = ExitCode.INTERNAL
    told_by_another: bool | None = None  # whether another process of the group reports it; None: not agreed on

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class CheckFailed(TrmError):
    """The command ran, and what it was asked to check does not hold."""

    exit_code = ExitCode.CHECK_FAILED


class UsageError(TrmError):
    """The command line contradicts itself or the state of the disk."""

    exit_code = ExitCode.USAGE


class ConfigError(TrmError):
    """The configuration is invalid, alone or together with the data."""

    exit_code = ExitCode.CONFIG


class DataError(TrmError):
    """A data file is missing, damaged, foreign, hostile, or cannot be trained on."""

    exit_code = ExitCode.DATA


class CheckpointError(TrmError):
    """A run directory or checkpoint is missing, damaged or does not fit."""

    exit_code = ExitCode.DATA


class DivergedError(TrmError):
    """Training produced NaN or infinity."""

    exit_code = ExitCode.DIVERGED


class ResourceError(TrmError):
    """Out of memory or disk."""

    exit_code = ExitCode.RESOURCES


class StoppedEarly(TrmError):
    """Training stopped before its last step with its state saved; running it again resumes it."""

    exit_code = ExitCode.STOPPED_EARLY


class Interrupted(TrmError):
    """The user pressed Ctrl-C; the state is saved."""

    exit_code = ExitCode.INTERRUPTED


# How a disk fails, or a network file system that went away. EIO is no sign of a damaged file: its disk did not read it.
DISK_FAILS = (errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENODEV, errno.ENXIO)

WITH_LOCKS = "a disk with locks (NFS 3: with rpc.statd; Lustre: mounted with flock)"
NEEDS_LESS_MEMORY = "a smaller training.global_batch_size, arch.hidden_size or dqn.buffer_capacity needs less"


def is_out_of_memory(error: BaseException) -> bool:
    """Recognises torch's errors too, by class name (GPU) or text (CPU allocator): torch must not be imported here."""
    if isinstance(error, MemoryError):
        return True
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    texts = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
