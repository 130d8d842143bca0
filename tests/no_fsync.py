"""A file system that cannot fsync folders, as SMB shares and some FUSE mounts."""

from __future__ import annotations

import os
import stat

import pytest


def refuse_to_fsync_folders(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
