"""Damaged and hostile recorded encoders, in capsule files and in folders: refused, or equal to what was recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import h5py
import numpy as np
import pytest
import tiny
from amount import many
from bytes_damage import bit_flipped, damaged
from hostile_json import hostile_json

from trm_core.config.schema import BuildConfig
from trm_core.data.build.pipeline import build_capsules
from trm_core.data.preprocessing_folder import ARRAYS, DOCUMENT
from trm_core.data.recorded_encoder import RecordedEncoder
from trm_core.data.store.encoder_arrays import array_hash
from trm_core.errors import DataError

SHORT, LONG = 4, many(20)
TEXTS = [f"message {number}, with some words and others" for number in range(30)]
ROWS = [(number * 1.5, "red" if number % 3 else "blue") for number in range(30)]
Fields = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capsule file built from two kinds of data."""
    folder = tmp_path_factory.mktemp("encoders")
    (folder / "t.tsv").write_text("\n".join(f"{'ab'[n % 2]}\t{text}" for n, text in enumerate(TEXTS)))
    (folder / "r.csv").write_text(
        "size,colour,label\n" + "".join(f"{s},{c},{n % 2}\n" for n, (s, c) in enumerate(ROWS))
    )
    config = BuildConfig(num_children=2, dim=8)
    build_capsules([str(folder / "t.tsv"), str(folder / "r.csv")], folder / "whole.h5", config)
    return folder / "whole.h5"


def answers(encoder: RecordedEncoder) -> list[Fields]:
    return [encoder.encode(TEXTS[:3], "text"), encoder.encode(ROWS[:3], "table")]


@pytest.fixture(scope="module")
def expected(whole: Path) -> list[Fields]:
    return answers(RecordedEncoder.of_file(whole))


@pytest.fixture(scope="module")
def saved(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same encoders in a folder."""
    folder = tmp_path_factory.mktemp("saved") / "encoders"
    RecordedEncoder.of_file(whole).save(folder)
    return folder


def same(one: list[Fields], other: list[Fields]) -> bool:
    return all(
        a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)
        for a, b in zip(one, other, strict=True)
    )


def forge(random: Random, path: Path) -> None:
    """Forge the file with knowledge of its protection: other JSON or other arrays, with matching hashes."""
    with h5py.File(path, "r+") as h5:
        manifest = json.loads(bytes(h5.attrs["manifest"]))
        text = json.dumps(manifest)
        if random.random() < 0.6:
            spoiled = hostile_json(random, json.dumps(manifest["encoders"]))[1]
            text = text.replace(json.dumps(manifest["encoders"]), spoiled)
        else:
            name = random.choice(sorted(manifest["encoder_hashes"]))
            values = h5[f"encoders/{name}"][()]
            if values.dtype.kind == "f":
                values.flat[random.randrange(values.size)] = random.choice([np.nan, np.inf, -1.0, 0.0, 1e30, -1e-30])
            else:
                values.flat[random.randrange(values.size)] = random.randrange(256)
            h5[f"encoders/{name}"][...] = values
            manifest["encoder_hashes"][name] = array_hash(values)
            text = json.dumps(manifest)
        tiny.set_text(h5, "manifest", text)


@pytest.mark.parametrize(
    "case", [*range(SHORT), *(pytest.param(n, marks=pytest.mark.slow) for n in range(SHORT, LONG))]
)
def test_files(case: int, random: Random, whole: Path, expected: list[Fields], tmp_path: Path) -> None:
    for attempt in range(6):
        path = Path(shutil.copy(whole, tmp_path / f"{attempt}.h5"))
        if forged := random.random() < 0.7:
            forge(random, path)
        else:
            path.write_bytes(damaged(random, path.read_bytes())[1])
        try:
            found = answers(RecordedEncoder.of_file(path))
        except DataError:
            continue
        # Forged values may be sound; then the result is finite and has the file's sizes.
        assert same(found, expected) or forged
        for fields in found:
            assert all(np.isfinite(fields[name]).all() for name in ("sketches", "children", "checksums"))
            assert fields["children"].shape[1:] == expected[0]["children"].shape[1:]


@pytest.mark.parametrize("case", [*range(3), *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, many(10)))])
def test_folders(case: int, random: Random, saved: Path, expected: list[Fields], tmp_path: Path) -> None:
    for attempt in range(12):
        folder = Path(shutil.copytree(saved, tmp_path / str(attempt)))
        path = folder / random.choice([DOCUMENT, ARRAYS])
        kind = random.randrange(3)
        if kind == 0 and path.name == DOCUMENT:
            path.write_text(hostile_json(random, path.read_text())[1], encoding="utf-8", errors="surrogatepass")
        elif kind == 1:
            path.write_bytes(bit_flipped(random, path.read_bytes()))
        else:
            path.write_bytes(damaged(random, path.read_bytes())[1])
        try:
            found = answers(RecordedEncoder.of_folder(folder))
        except DataError:
            continue
        assert same(found, expected)
