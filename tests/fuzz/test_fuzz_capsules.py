"""Damaged and hostile capsule files: refused, or read as they were written.

Nothing protects against a sound file that somebody rewrote with other values or another manifest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import h5py
import numpy as np
import pytest
import tiny
from amount import many
from bytes_damage import bit_flipped, damaged
from hostile_json import hostile_json
from intact_run import Intact
from judge import Bench

from trm_core.data.store import open_capsules
from trm_core.errors import DataError

SHORT, LONG = 6, many(40)
Attack = Callable[[Random, Path], str]


@pytest.fixture(scope="module")
def capsules(capsule_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capsule file whose manifest has every entry that a built one has."""
    path = Path(shutil.copy(capsule_file, tmp_path_factory.mktemp("capsules") / "named.h5"))
    with h5py.File(path, "r+") as h5:
        manifest = json.loads(bytes(h5.attrs["manifest"]))
        manifest |= {"class_names": ["no", "yes", "perhaps"], "tool_version": "0.1.0", "augmented_rows": 0}
        manifest |= {"sources": [{"path": "a.csv", "sha256": "0"}], "kind_reason": "said so", "encoder": "none"}
        tiny.set_text(h5, "manifest", json.dumps(manifest))
    return path


def damage_bytes(random: Random, path: Path) -> str:
    what, data = damaged(random, path.read_bytes())
    path.write_bytes(data)
    return what


def damage_structure(random: Random, path: Path) -> str:
    """Flip bits of the parts that are not data, which make up most of a small file's used bytes."""
    data = bytearray(path.read_bytes())
    used = [place for place in range(8, 4096) if data[place]]
    for place in random.sample(used, random.randint(1, 3)):
        data[place] ^= 1 << random.randrange(8)
    path.write_bytes(data)
    return "bits of the structure"


def damage_values(random: Random, path: Path) -> str:
    """Flip a bit inside the data of a dataset."""
    with h5py.File(path, "r") as h5:
        name = random.choice([f"{split}/{field}" for split in h5 if split != "prices" for field in h5[split]])
        dataset = h5[name].id
        if dataset.get_offset() is not None:
            start, size = dataset.get_offset(), dataset.get_storage_size()
        else:
            chunk = dataset.get_chunk_info(random.randrange(dataset.get_num_chunks()))
            start, size = chunk.byte_offset, chunk.size
    data = path.read_bytes()
    path.write_bytes(data[:start] + bit_flipped(random, data[start : start + size]) + data[start + size :])
    return f"a bit of {name}"


def forge_values(random: Random, path: Path) -> str:
    """Write values that no builder writes, in a sound file."""
    with h5py.File(path, "r+") as h5:
        name = random.choice([f"{split}/{field}" for split in h5 if split != "prices" for field in h5[split]])
        values = h5[name][()]
        numbers = (
            (np.nan, np.inf, -np.inf, 3e38) if values.dtype.kind == "f" else (-(2**63), 2**63 - 1, -1, -5, 3, -100)
        )
        values.flat[random.randrange(values.size)] = random.choice(numbers)
        h5[name][...] = values
    return f"a value of {name}"


def forge_manifest(random: Random, path: Path) -> str:
    with h5py.File(path, "r+") as h5:
        what, text = hostile_json(random, bytes(h5.attrs["manifest"]).decode())
        tiny.set_text(h5, "manifest", text)
    return f"manifest: {what}"


ATTACKS: tuple[Attack, ...] = (
    damage_bytes,
    damage_structure,
    damage_values,
    forge_values,
    forge_manifest,
    forge_manifest,
)


@pytest.mark.parametrize("case", range(SHORT))
def test_capsules(case: int, random: Random, bench: Bench, capsules: Path, intact: Intact) -> None:
    path = Path(shutil.copy(capsules, bench.work / "capsules.h5"))
    bench.said = random.choice(ATTACKS)(random, path)
    seen = bench.trm("inspect-dataset", path, *random.choice(([], ["--json"])), named=path)
    if seen.returncode == 0 and "no content hash" not in seen.stdout:
        bench.require(same_data(path, capsules), "passes with data that was changed", seen)
    if random.random() < 0.5:
        bench.trm("train", "--dry-run", *tiny.as_overrides(data={"path": path}), named=path)
    else:
        bench.trm("eval", intact.run, "--data", path, "--policy", "never", named=path)


@pytest.mark.slow
@pytest.mark.parametrize("case", range(SHORT, LONG))
def test_capsules_more(case: int, random: Random, bench: Bench, capsules: Path, intact: Intact) -> None:
    test_capsules(case, random, bench, capsules, intact)


FLIPS = 11  # per case


@pytest.mark.parametrize("case", [0, *(pytest.param(case, marks=pytest.mark.slow) for case in range(1, many(8)))])
def test_no_flipped_bit_is_read_in_silence(case: int, random: Random, capsules: Path, tmp_path: Path) -> None:
    """Every reader, not only inspect-dataset, gives the same rows, values, prices and manifest, or an error."""
    path, whole = tmp_path / "flipped.h5", capsules.read_bytes()
    refused = 0
    for flip in range(FLIPS):
        # Half of the bits are chosen in used bytes, since padding and preallocated space make up most of a small file.
        place = random.randrange(len(whole))
        while flip % 2 and not whole[place]:
            place = random.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << random.randrange(8)]) + whole[place + 1 :])
        try:
            assert same_data(path, capsules), f"bit of byte {place}"
            assert told(path) == told_by_the_original(capsules), f"bit of byte {place}"
        except DataError:
            refused += 1
    assert refused > FLIPS // 4


def told(path: Path) -> tuple[object, list[float]]:
    with open_capsules(path) as file:
        return file.manifest, file.prices.tolist()


def data(path: Path) -> dict[str, dict[str, bytes]]:
    """The bytes of each field, by split."""
    with open_capsules(path) as file:
        splits = {split: file.read(split, slice(None)) for split in file.rows}
    return {split: {name: values.tobytes() for name, values in fields.items()} for split, fields in splits.items()}


data_of_the_original, told_by_the_original = cache(data), cache(told)


def same_data(path: Path, original: Path) -> bool:
    return data(path) == data_of_the_original(original)
