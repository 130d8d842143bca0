"""The writer refuses bad rows, and whatever happens leaves a complete file or nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trm_core.data.store import CapsuleWriter, open_capsules
from trm_core.data.store.layout import chunk_rows
from trm_core.data.store.partial import remove_stale
from trm_core.errors import DataError, ResourceError

Arrays = dict[str, np.ndarray]


def writer_for(path: Path, **options: Any) -> CapsuleWriter:
    settings: dict[str, Any] = {"num_capsules": 3, "dim": 2, "num_children": 2, "with_parents": True, "with_mask": True}
    return CapsuleWriter(path, **{**settings, **options})


def rows(n: int, **changes: np.ndarray) -> Arrays:
    arrays = {
        "sketches": np.ones((n, 3, 2), np.float32),
        "children": np.ones((n, 3, 2, 2), np.float32),
        "labels": np.arange(n) % 3,
        "parents": np.full((n, 3), -1),
        "mask": np.ones((n, 3), bool),
    }
    return {**arrays, **changes}


def with_value(array: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


def refused(name: str, values: np.ndarray) -> Arrays:
    return rows(5, **{name: values})


GOOD = rows(5)
REFUSALS: dict[str, tuple[Arrays, str]] = {
    "nan": (
        refused("children", with_value(GOOD["children"], (3, 0, 1, 0), np.nan)),
        r"train/children: row 13 holds nan",
    ),
    "infinity": (
        refused("sketches", with_value(GOOD["sketches"], (0, 2, 1), -np.inf)),
        r"train/sketches: row 10 holds -inf",
    ),
    "beyond half": (
        refused("sketches", with_value(GOOD["sketches"], (4, 0, 0), 7e4)),
        r"row 14: 70000.0 is beyond .*float16",
    ),
    "negative label": (refused("labels", np.array([0, 1, -1, 0, 0])), r"train/labels: row 12: -1 is a label below 0"),
    "float label": (refused("labels", np.zeros(5)), r"train/labels: expected int64, got float64"),
    "label rank": (refused("labels", np.zeros((5, 3), int)), r"train/labels: expected shape \[n, \], got \[5, 3\]"),
    "parent out of range": (refused("parents", np.full((5, 3), 3)), r"train/parents: row 10: 3 is no capsule's index"),
    "own parent": (refused("parents", np.tile([0, -1, -1], (5, 1))), r"row 10: 0 is an ancestor of itself"),
    "circle": (refused("parents", np.array([[-1, 0, 1]] * 4 + [[1, 2, 0]])), r"row 14: 1 is an ancestor of itself"),
    "integer mask": (refused("mask", np.ones((5, 3), int)), r"train/mask: expected bool, got int64"),
    "text": (refused("sketches", np.full((5, 3, 2), "x")), r"train/sketches: expected float16 or float32, got <U1"),
    "wrong k": (
        refused("sketches", np.ones((5, 4, 2))),
        r"train/sketches: expected shape \[n, 3, 2\], got \[5, 4, 2\]",
    ),
    "scalar": (refused("sketches", np.float32(1)), r"train/sketches: expected shape"),
    "rows differ": (refused("labels", np.zeros(4, int)), r"fields differ in their number of rows"),
    "field missing": ({"sketches": GOOD["sketches"]}, r"fields missing: \['children', 'labels', 'mask', 'parents'\]"),
    "field extra": ({**GOOD, "ids": np.arange(5)}, r"not declared: \['ids'\]"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_rows_are_named_and_nothing_of_them_is_written(case: str, tmp_path: Path) -> None:
    arrays, message = REFUSALS[case]
    path = tmp_path / "a.h5"
    with writer_for(path) as writer:
        writer.append("train", rows(10))
        with pytest.raises(DataError, match=message):
            writer.append("train", arrays)
        writer.append("train", rows(10))
        writer.close({"num_classes": 3})
    file = open_capsules(path)
    assert file.rows == {"train": 20}
    assert file.verify() == []
    file.close()


@pytest.mark.parametrize("sizes", [{"num_capsules": 0}, {"dim": 0}, {"num_children": -1}, {"checksum_dim": -1}])
def test_impossible_sizes(sizes: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be at least"):
        writer_for(tmp_path / "a.h5", **sizes)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("prices", [[1.0, 2.0], [1.0, 0.0, 1.0], [1.0, np.nan, 1.0]])
def test_bad_prices(prices: list[float], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prices"):
        writer_for(tmp_path / "a.h5", prices=np.array(prices))
    assert os.listdir(tmp_path) == []


def test_label_beyond_num_classes(tmp_path: Path) -> None:
    with writer_for(tmp_path / "a.h5") as writer:
        writer.append("train", rows(5))
        with pytest.raises(DataError, match="label 2 does not fit num_classes=2"):
            writer.close({"num_classes": 2})
    assert os.listdir(tmp_path) == []


def test_no_rows(tmp_path: Path) -> None:
    with writer_for(tmp_path / "a.h5") as writer:
        writer.append("train", rows(0))
        with pytest.raises(DataError, match="no samples"):
            writer.close({})
    assert os.listdir(tmp_path) == []


def interrupted(path: Path, error: type[BaseException], **options: Any) -> None:
    with writer_for(path, **options) as writer:
        writer.append("train", rows(5))
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_an_exception(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "a.h5"
    with pytest.raises(error):
        interrupted(path, error)
    assert os.listdir(tmp_path) == []


def test_leaving_without_close_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="without close"), writer_for(tmp_path / "a.h5") as writer:
        writer.append("train", rows(5))
    assert os.listdir(tmp_path) == []


def test_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_text("precious")
    with pytest.raises(DataError, match="exists already"):
        writer_for(path)
    with pytest.raises(KeyboardInterrupt):
        interrupted(path, KeyboardInterrupt, overwrite=True)
    assert path.read_text() == "precious"
    with writer_for(path, overwrite=True) as writer:
        writer.append("train", rows(5))
        writer.close({})
    assert open_capsules(path).rows == {"train": 5}
    assert os.listdir(tmp_path) == ["a.h5"]


def test_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with writer_for(path) as writer:
        writer.append("train", rows(5))
        path.write_text("precious")
        with pytest.raises(DataError, match="appeared"):
            writer.close({})
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == ["a.h5"]


def test_two_writers_of_one_path(tmp_path: Path) -> None:
    with writer_for(tmp_path / "a.h5") as writer:
        with pytest.raises(DataError, match="already writing"):
            writer_for(tmp_path / "a.h5")
        writer.append("train", rows(5))
        writer.close({})
    assert open_capsules(tmp_path / "a.h5").rows == {"train": 5}


def test_folder_or_impossible_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        writer_for(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        writer_for(tmp_path / "file" / "a.h5")


def test_manifest_above_64_kilobytes(tmp_path: Path) -> None:
    names = [f"class number {index}" for index in range(20_000)]
    with writer_for(tmp_path / "a.h5") as writer:
        writer.append("train", rows(5))
        writer.close({"class_names": names})
    assert open_capsules(tmp_path / "a.h5").manifest["class_names"] == names


@pytest.mark.parametrize(("row_bytes", "rows_per_chunk"), [(12 * 4 * 512 * 2, 16), (320, 64), (8, 2048), (5 << 20, 1)])
def test_chunks_are_64_rows_or_a_part_of_them_below_a_megabyte(row_bytes: int, rows_per_chunk: int) -> None:
    assert chunk_rows(row_bytes) == rows_per_chunk


WRITE_FOREVER = """
import numpy as np, sys
from pathlib import Path
from trm_core.data.store import CapsuleWriter
with CapsuleWriter(Path(sys.argv[1]), num_capsules=8, dim=64) as writer:
    for i in range(10**6):
        writer.append("train", {"sketches": np.random.rand(64, 8, 64), "labels": np.zeros(64, int)})
        print(i, flush=True)
"""


def test_killed_writer_leaves_only_a_partial_file_that_the_next_one_removes(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    process = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(20):
        process.stdout.readline()
    partial = tmp_path / f"a.h5.partial-{process.pid}"
    assert remove_stale(path) == []  # it is alive
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert os.listdir(tmp_path) == [partial.name]
    other = tmp_path / "b.h5.partial-1"
    other.write_text("somebody else's")
    with writer_for(path) as writer:
        assert not partial.exists()
        writer.append("train", rows(5))
        writer.close({})
    assert sorted(os.listdir(tmp_path)) == ["a.h5", other.name]


DISK_FULL = """
import resource, sys, os
import numpy as np
from pathlib import Path
from trm_core.data.store import CapsuleWriter
from trm_core.errors import ResourceError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
path = Path(sys.argv[1])
try:
    with CapsuleWriter(path, num_capsules=8, dim=64) as writer:
        for done in range(int(sys.argv[3])):
            writer.append("train", {"sketches": np.random.rand(64, 8, 64), "labels": np.zeros(64, int)})
        writer.close({})
except ResourceError as error:
    print(error.message)
    print(done)
    print(os.listdir(path.parent))
"""


@pytest.mark.parametrize(("limit", "pieces"), [(1_000_000, 1000), (100, 5), (66_000, 1), (40_000, 10)])
def test_no_room_on_the_disk(limit: int, pieces: int, tmp_path: Path) -> None:
    """A real write failure. libhdf5 left alone with one crashes the process at exit, so the exit status counts."""
    command = [sys.executable, "-c", DISK_FULL, str(tmp_path / "a.h5"), str(limit), str(pieces)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{tmp_path / 'a.h5'}: no room on the disk")
    _, appended, left = result.stdout.splitlines()
    assert int(appended) <= 100  # it stops soon after the failure
    assert left == "[]"


def test_disk_full_is_a_resource_error() -> None:
    from trm_core.data.store.partial import write_error

    assert isinstance(write_error(OSError(28, "No space left on device"), Path("a")), ResourceError)
    assert isinstance(write_error(PermissionError(13, "no"), Path("a")), DataError)


def test_memory_of_appended_arrays_is_not_kept(tmp_path: Path, arrays: Callable[..., Arrays]) -> None:
    """Arrays may be changed by the caller after append."""
    values = rows(5)
    with writer_for(tmp_path / "a.h5") as writer:
        writer.append("train", values)
        values["sketches"][:] = 9
        writer.append("train", values)
        writer.close({})
    file = open_capsules(tmp_path / "a.h5")
    assert file.verify() == []
    np.testing.assert_array_equal(file.read("train", slice(None))["sketches"][:, 0, 0], [1] * 5 + [9] * 5)
