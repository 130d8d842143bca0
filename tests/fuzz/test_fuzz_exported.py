"""Damaged exported folders: refused by name, or they answer exactly as before."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from amount import many

from trm_core.data.store import open_capsules
from trm_core.errors import TrmError
from trm_core.inference.folder import CONFIG, WEIGHTS, sha256_of
from trm_core.inference.predictor import Predictor

CASES = [*range(40), *(pytest.param(n, marks=pytest.mark.slow) for n in range(40, many(75)))]
JUNK: list[Any] = [None, True, -1, 0, 2**31, 2**70, 1e308, "", "x", "../../etc", [], {}, [[]], {"a": 1}, "0" * 5000]


@pytest.fixture(scope="module")
def exported(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    done = tiny.invoke("export", trained_run, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def fields(capsule_file: Path) -> dict[str, Any]:
    with open_capsules(capsule_file) as file:
        return file.read("test", slice(0, 20), ["sketches", "children"])


def forged(generator: random.Random, record: Any) -> Any:
    """One value anywhere in the JSON is replaced or deleted."""
    inner, path = record, []
    while isinstance(inner, (dict, list)) and inner and (not path or generator.random() < 0.8):
        key = generator.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        path.append((inner, key))
        inner = inner[key]
    owner, key = path[-1]
    if generator.random() < 0.2:
        del owner[key]
    else:
        owner[key] = generator.choice(JUNK)
    return record


@pytest.mark.parametrize("case", CASES)
def test_a_folder_with_something_wrong(exported: Path, fields: dict[str, Any], tmp_path: Path, case: int) -> None:
    generator = random.Random(f"exported {case}")
    folder = shutil.copytree(exported, tmp_path / "model")
    path = folder / generator.choice([CONFIG, WEIGHTS])
    kind = generator.randrange(4)
    data = bytearray(path.read_bytes())
    exact = True
    if kind == 0:
        path.write_bytes(data[: generator.randrange(len(data))])
    elif kind == 1:
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        exact = path.name == WEIGHTS  # in config.json, another digit may be just as valid
    elif kind == 2:
        path.write_bytes(generator.randbytes(generator.randrange(2000)))
    else:
        exact = False
        record = json.loads((folder / CONFIG).read_text())
        if path.name == WEIGHTS:
            place = generator.randrange(min(len(data), 3000))  # names, shapes and offsets
            data[place] = generator.randrange(256)
            path.write_bytes(data)
            record["weights_sha256"] = sha256_of(path)  # forged to match
        else:
            record = forged(generator, record)
        (folder / CONFIG).write_text(json.dumps(record))
    try:
        predictor = Predictor.load(folder, device="cpu")
        answers = predictor.predict(**fields)
    except TrmError:
        return
    if exact:
        expected = Predictor.load(exported, device="cpu").predict(**fields)
        assert [a.as_record(True) for a in answers] == [a.as_record(True) for a in expected]
