"""Reading chunks whose checksums were looked at before."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from trm_core.data.store.checked import RECHECK, CheckedReader


@pytest.mark.parametrize(
    ("shape", "chunk", "dtype"), [((203, 3, 4), 16, "f2"), ((203,), 64, "i8"), ((128, 5), 64, "f4")]
)
def test_any_range_at_any_time(shape: tuple[int, ...], chunk: int, dtype: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = random.integers(0, 1000, shape).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5.create_dataset("x", data=values, chunks=(chunk, *shape[1:]), fletcher32=True)
    with h5py.File(tmp_path / "a.h5") as h5:
        reader = CheckedReader(h5["x"])
        for _ in range(500):
            start = int(random.integers(len(values)))
            stop = int(random.integers(start + 1, len(values) + 1))
            whole = np.zeros_like(values)
            reader.read(start, stop, whole[start:stop])
            expected = np.zeros_like(values)
            expected[start:stop] = values[start:stop]
            np.testing.assert_array_equal(whole, expected)


@pytest.mark.parametrize("settings", [{}, {"fletcher32": True, "compression": "gzip"}, {"chunks": None}])
def test_other_storage_is_left_to_hdf5(settings: dict[str, object], tmp_path: Path) -> None:
    values = np.arange(640, dtype=np.float32).reshape(128, 5)
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5.create_dataset("x", data=values, **{"chunks": (32, 5), **settings})
    with h5py.File(tmp_path / "a.h5") as h5:
        reader, out = CheckedReader(h5["x"]), np.empty_like(values)
        for _ in range(3):
            reader.read(0, len(values), out)
            np.testing.assert_array_equal(out, values)


def test_damage_is_noticed_at_once_and_later_at_the_eighth_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    values = np.random.default_rng(0).random((64, 50), dtype=np.float32)
    with h5py.File(path, "w") as h5:
        h5.create_dataset("x", data=values, chunks=(16, 50), fletcher32=True)
        place = h5["x"].id.get_chunk_info(2).byte_offset + 100
    out = np.empty_like(values)

    def flip() -> None:
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)

    flip()
    with h5py.File(path) as h5, pytest.raises(OSError, match="filter returned failure"):
        CheckedReader(h5["x"]).read(0, 64, out)
    flip()
    with h5py.File(path, rdcc_nbytes=0) as h5:
        reader = CheckedReader(h5["x"])
        reader.read(0, 64, out)
        flip()
        for _ in range(RECHECK - 1):
            reader.read(0, 64, out)
        with pytest.raises(OSError, match="filter returned failure"):
            reader.read(0, 64, out)
