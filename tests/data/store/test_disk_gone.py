"""A capsule file whose disk goes away, as a network file system may."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import tiny

from trm_core.data.store import open_capsules
from trm_core.errors import DataError


def test_the_message_blames_the_disk_and_the_process_can_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left for libhdf5 to close when the process ends: it would crash."""
    spare = os.open(os.devnull, os.O_RDONLY)
    file = open_capsules(tiny.write_capsules(tmp_path / "a.h5", {"train": 4}))
    file.read("train", slice(0, 1))
    os.close(file._handle().id.get_vfd_handle())  # all that HDF5 does with its file fails from now on
    os.close(spare)  # so that what is opened next does not get the number of HDF5's file

    def fail(*_: object) -> None:
        raise OSError(errno.ENOTCONN, "Can't read data\n, errno = 107")

    monkeypatch.setattr("trm_core.data.store.checked.CheckedReader.read", fail)
    with pytest.raises(DataError, match=r"rows .* cannot be read \(Transport endpoint is not connected\)") as caught:
        file.read("train", slice(0, 1))
    assert caught.value.hint == "its disk fails or went away; run the command again when it is back"
    assert file._h5 is None


def test_closing_leaves_other_handles_of_the_file_alone(tmp_path: Path) -> None:
    """HDF5 opens a file once for all handles of a process, with one descriptor."""
    path = tiny.write_capsules(tmp_path / "a.h5", {"train": 300})
    first, second = open_capsules(path), open_capsules(path)
    first.read("train", slice(0, 1))
    second.read("train", slice(0, 1), ["labels"])
    first.close()
    assert second.read("train", slice(0, 300), ["sketches"])["sketches"].any()
