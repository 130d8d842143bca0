"""What is written is what is read, for any sizes, dtypes, append order and way of reading."""

from __future__ import annotations

import pickle
import tempfile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_core.data.fields import FIELDS, SPLITS
from trm_core.data.store import CapsuleFile, CapsuleWriter, open_capsules

FEW = settings(max_examples=25, deadline=None)


@st.composite
def files(draw: st.DrawFn, most_rows: int = 90) -> dict[str, Any]:
    """Sizes, options and pieces (split, rows) of a file."""
    return {
        "k": draw(st.integers(1, 5)),
        "m": draw(st.integers(0, 3)),
        "D": draw(st.integers(1, 9)),
        "R": draw(st.sampled_from([0, 1, 6])),
        "label_rank": draw(st.sampled_from([0, 1, 2])),
        "dtype": draw(st.sampled_from(["float16", "float32"])),
        "extras": draw(st.sets(st.sampled_from(["parents", "mask", "modality", "ids"]))),
        "prices": draw(st.booleans()),
        "pieces": draw(
            st.lists(st.tuples(st.sampled_from(SPLITS), st.integers(0, most_rows)), min_size=1, max_size=8).filter(
                lambda pieces: any(n for _, n in pieces)
            )
        ),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def arrays_for(spec: dict[str, Any], n: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    k, m, dim, width = spec["k"], spec["m"], spec["D"], spec["R"]
    arrays: dict[str, np.ndarray] = {"sketches": random.normal(size=(n, k, dim))}
    if m:
        arrays["children"] = random.normal(size=(n, k, m, dim)).astype(np.float32)
    if width:
        arrays["checksums"] = random.normal(size=(n, k, width)).astype(np.float16)
    if spec["label_rank"]:
        arrays["labels"] = random.choice([-100, 0, 1, 5], size=(n, k)[: spec["label_rank"]])
    if "parents" in spec["extras"]:
        arrays["parents"] = np.arange(k) * np.ones((n, 1), np.int32) - 1
    if "mask" in spec["extras"]:
        arrays["mask"] = random.random((n, k)) < 0.5
    if "modality" in spec["extras"]:
        arrays["modality"] = random.integers(0, 3, n).astype(np.uint8)
    if "ids" in spec["extras"]:
        arrays["ids"] = random.integers(-5, 2**60, n)
    return arrays


def write(path: Path, spec: dict[str, Any], pieces: list[tuple[str, dict[str, np.ndarray]]]) -> CapsuleFile:
    writer = CapsuleWriter(
        path,
        num_capsules=spec["k"],
        dim=spec["D"],
        num_children=spec["m"],
        checksum_dim=spec["R"],
        label_rank=spec["label_rank"],
        dtype=spec["dtype"],
        prices=np.linspace(0.5, 2, spec["k"]) if spec["prices"] else None,
        **{f"with_{name}": True for name in spec["extras"]},
    )
    with writer:
        for split, arrays in pieces:
            writer.append(split, arrays)
        writer.close({"task": "classes", "num_classes": 6, "note": "ä"})
    return open_capsules(path)


def stored(spec: dict[str, Any], pieces: list[tuple[str, dict[str, np.ndarray]]]) -> dict[str, dict[str, np.ndarray]]:
    """What the file must hold, by the most naive way: concatenate and cast."""
    result: dict[str, dict[str, np.ndarray]] = {}
    for split in SPLITS:
        parts = [arrays for name, arrays in pieces if name == split]
        if sum(len(arrays["sketches"]) for arrays in parts):
            result[split] = {
                field: np.concatenate([arrays[field] for arrays in parts]).astype(
                    spec["dtype"] if FIELDS[field].is_embedding else FIELDS[field].dtypes[0]
                )
                for field in parts[0]
            }
    return result


@FEW
@given(files(), st.data())
def test_round_trip(spec: dict[str, Any], data: st.DataObject) -> None:
    random = np.random.default_rng(spec["seed"])
    pieces = [(split, arrays_for(spec, n, random)) for split, n in spec["pieces"]]
    expected = stored(spec, pieces)
    with tempfile.TemporaryDirectory() as folder, write(Path(folder) / "a.h5", spec, pieces) as file:
        assert file.rows == {split: len(expected[split]["sketches"]) for split in expected}
        assert (file.num_capsules, file.dim, file.num_children) == (spec["k"], spec["D"], spec["m"])
        assert (file.checksum_dim, file.label_rank, file.num_classes) == (spec["R"], spec["label_rank"], 6)
        assert file.prices.dtype == np.float32
        np.testing.assert_array_equal(
            file.prices, np.float32(np.linspace(0.5, 2, spec["k"])) if spec["prices"] else np.ones(spec["k"])
        )
        assert file.manifest["note"] == "ä"
        assert file.manifest["counts"] == file.rows
        assert [problem for problem in file.verify() if problem.severity == "error"] == []
        for split, fields in expected.items():
            count = file.rows[split]
            start, stop = sorted(data.draw(st.tuples(st.integers(0, count), st.integers(0, count))))
            index = data.draw(st.lists(st.integers(0, count - 1), max_size=30))
            step = data.draw(st.integers(2, 5))
            whole, part = file.read(split, slice(None)), file.read(split, slice(start, stop))
            picked, strided = file.read(split, np.array(index, int)), file.read(split, slice(stop, None, -step))
            assert set(whole) == set(fields)
            for name, values in fields.items():
                assert whole[name].dtype == values.dtype
                np.testing.assert_array_equal(whole[name], values)
                np.testing.assert_array_equal(part[name], values[start:stop])
                np.testing.assert_array_equal(picked[name], values[index])
                np.testing.assert_array_equal(strided[name], values[stop::-step])


@FEW
@given(files(most_rows=8), st.randoms(use_true_random=False))
def test_content_hash_depends_on_content_only(spec: dict[str, Any], shuffle: Any) -> None:
    """The order of splits and the sizes of pieces do not matter; a single changed value does."""
    random = np.random.default_rng(spec["seed"])
    pieces = [(split, arrays_for(spec, n, random)) for split, n in spec["pieces"]]
    expected = stored(spec, pieces)
    rows = [(split, row) for split in expected for row in range(len(expected[split]["sketches"]))]
    order = [split for split, _ in rows]
    shuffle.shuffle(order)
    upcoming = dict.fromkeys(expected, 0)
    singly = []
    for split in order:
        row = upcoming[split]
        upcoming[split] += 1
        singly.append((split, {name: values[row : row + 1] for name, values in expected[split].items()}))
    with tempfile.TemporaryDirectory() as folder:
        first = write(Path(folder) / "a.h5", spec, pieces)
        second = write(Path(folder) / "b.h5", spec, singly)
        assert first.manifest["content_hash"] == second.manifest["content_hash"]
        singly[0][1]["sketches"] = singly[0][1]["sketches"] + 1
        third = write(Path(folder) / "c.h5", spec, singly)
        assert first.manifest["content_hash"] != third.manifest["content_hash"]
        for file in (first, second, third):
            file.close()


def test_wide_rows_and_sparse_index(tmp_path: Path) -> None:
    """Rows above the chunk size, and row numbers far apart, near, and repeated."""
    random = np.random.default_rng(0)
    values = random.normal(size=(700, 2, 900)).astype(np.float32)
    with CapsuleWriter(tmp_path / "a.h5", num_capsules=2, dim=900, label_rank=0, dtype="float32") as writer:
        writer.append("train", {"sketches": values})
        writer.close({})
    file = open_capsules(tmp_path / "a.h5")
    for index in (
        random.integers(0, 700, 300),
        np.array([699, 0, 350, 350, 1]),
        np.arange(0, 700, 65),
        np.array([], int),
    ):
        np.testing.assert_array_equal(file.read("train", index)["sketches"], values[index])
    file.close()


def _sum_in_child(file: CapsuleFile) -> float:
    return float(file.read("train", slice(None), ["sketches"])["sketches"].astype(np.float64).sum())


def test_forked_child_opens_a_handle_of_its_own(capsule_path: Path) -> None:
    file = open_capsules(capsule_path)
    here = _sum_in_child(file)
    inherited = file._h5

    def child() -> None:
        assert _sum_in_child(file) == here
        assert file._h5 is not inherited

    process = get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
    file.close()


def test_pickled_file_reads_in_another_process(capsule_path: Path) -> None:
    file = open_capsules(capsule_path)
    here = _sum_in_child(file)  # the handle is open now, and must not travel
    assert _sum_in_child(pickle.loads(pickle.dumps(file))) == here
    for method in ("fork", "spawn"):
        with get_context(method).Pool(1) as pool:
            assert pool.apply(_sum_in_child, (file,)) == here
    assert _sum_in_child(file) == here  # still usable after a fork has used its copy
    file.close()
    assert _sum_in_child(file) == here  # and after close
