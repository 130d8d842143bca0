"""`verify` finds what was planted and nothing else; `require_trainable` says why nothing can be learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tiny

from trm_core.data.checksum import checksums
from trm_core.data.sound import require_checksums
from trm_core.data.store import CapsuleFile, CapsuleWriter, Problem, open_capsules
from trm_core.data.store.guard import inspect_structure
from trm_core.errors import DataError


def after(path: Path, change: Callable[[h5py.File], None]) -> list[Problem]:
    """Problems of the file after a change."""
    with h5py.File(path, "r+") as h5:
        change(h5)
    file = CapsuleFile(path, inspect_structure(path))
    problems = file.verify()
    file.close()
    return problems


def edit_manifest(h5: h5py.File, **changes: Any) -> None:
    manifest = {**json.loads(bytes(h5.attrs["manifest"])), **changes}
    tiny.set_text(h5, "manifest", json.dumps({key: value for key, value in manifest.items() if value is not None}))


def found(problems: list[Problem]) -> set[tuple[str, str, int | None, int]]:
    return {(problem.kind, problem.dataset, problem.row, problem.count) for problem in problems}


def test_honest_file_has_no_problems(capsule_path: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}
    file = open_capsules(capsule_path)
    assert file.verify(lambda what, done, of: seen.update({what: (done, of)})) == []
    assert seen["train/children"] == (100, 100)
    assert seen["test/checksums (recomputed)"] == (30, 30)
    file.close()


def test_nan_and_infinity(capsule_path: Path) -> None:
    def plant(h5: h5py.File) -> None:
        h5["train/sketches"][7, 0, 1] = np.nan
        h5["train/sketches"][9, 2, 3] = np.inf

    problems = after(capsule_path, plant)
    assert found(problems) == {
        ("non-finite", "train/sketches", 7, 2),
        ("hash-mismatch", "train/sketches", None, 0),
    }
    assert "2 row(s) with NaN or infinity, first row 7" in problems[0].message


@pytest.mark.parametrize("label", [7, -1, -99])
def test_label_out_of_range(label: int, capsule_path: Path) -> None:
    def plant(h5: h5py.File) -> None:
        h5["test/labels"][3] = label
        h5["test/labels"][4] = -100

    expected = {("label-range", "test/labels", 3, 1), ("hash-mismatch", "test/labels", None, 0)}
    assert found(after(capsule_path, plant)) == expected


def test_parent_out_of_range(capsule_path: Path) -> None:
    def plant(h5: h5py.File) -> None:
        h5["test/parents"][29] = [-2, 0, 3]

    assert ("parent-range", "test/parents", 29, 1) in found(after(capsule_path, plant))


def test_children_that_do_not_belong_to_their_checksums(capsule_path: Path) -> None:
    def plant(h5: h5py.File) -> None:
        h5["train/children"][41] = h5["train/children"][40]

    assert ("checksum-mismatch", "train/checksums", 41, 1) in found(after(capsule_path, plant))


def test_wrong_seed_and_no_seed(capsule_path: Path) -> None:
    problems = after(capsule_path, lambda h5: edit_manifest(h5, checksum_seed=12))
    assert found(problems) == {
        ("checksum-mismatch", "train/checksums", 0, 100),
        ("checksum-mismatch", "test/checksums", 0, 30),
    }
    problems = after(capsule_path, lambda h5: edit_manifest(h5, checksum_seed=None))
    assert {problem.kind for problem in problems} == {"checksum-unverifiable"}
    assert {problem.severity for problem in problems} == {"note"}
    assert "cannot be verified" in problems[0].message


def test_one_flipped_bit_is_found(capsule_path: Path) -> None:
    def plant(h5: h5py.File) -> None:
        h5["train/ids"][99] ^= 1

    assert found(after(capsule_path, plant)) == {("hash-mismatch", "train/ids", None, 0)}


def test_changed_prices_and_hashes(capsule_path: Path) -> None:
    def plant(h5: h5py.File) -> None:
        h5["prices"][0] = 3

    assert found(after(capsule_path, plant)) == {("hash-mismatch", "prices", None, 0)}


def test_content_hash_that_does_not_fit(capsule_path: Path) -> None:
    assert found(after(capsule_path, lambda h5: edit_manifest(h5, content_hash="0"))) == {
        ("hash-mismatch", "", None, 0)
    }
    assert found(after(capsule_path, lambda h5: edit_manifest(h5, dataset_hashes=None))) == {("no-hash", "", None, 0)}


def test_unusable_prices_are_refused(capsule_path: Path) -> None:
    with h5py.File(capsule_path, "r+") as h5:
        h5["prices"][0] = np.nan
    with pytest.raises(DataError, match="prices must be finite"):
        CapsuleFile(capsule_path, inspect_structure(capsule_path))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 300.0])
@pytest.mark.parametrize(("m", "dim"), [(1, 1), (4, 512)])
def test_rounding_is_no_mismatch(dtype: Any, scale: float, m: int, dim: int, tmp_path: Path) -> None:
    """Checksums of the unrounded children must verify against the stored ones; one exchanged child must not."""
    random = np.random.default_rng(1)
    children = (scale * random.standard_t(3, size=(200, 2, m, dim))).clip(-60_000, 60_000).astype(np.float32)
    sums = checksums(children, 8, 3)
    swapped = children.copy()
    swapped[150, 1, 0], swapped[151, 1, 0] = children[151, 1, 0], children[150, 1, 0]
    visible = scale >= 1e-3 or dtype == "float32"  # half precision has few digits left for values of 1e-6
    for name, written, bad in (("a.h5", children, 0), ("b.h5", swapped, 2))[: 1 + visible]:
        with CapsuleWriter(
            tmp_path / name, num_capsules=2, dim=dim, num_children=m, checksum_dim=8, label_rank=0, dtype=dtype
        ) as writer:
            writer.append("train", {"sketches": written.mean(2), "children": written, "checksums": sums})
            writer.close({"checksum_seed": 3})
        with open_capsules(tmp_path / name) as file:
            assert sum(problem.count for problem in file.verify()) == bad


# --- require_trainable ---


def labelled(path: Path, splits: dict[str, np.ndarray], **manifest: Any) -> CapsuleFile:
    rank: Any = next(iter(splits.values())).ndim
    with CapsuleWriter(path, num_capsules=2, dim=1, label_rank=rank) as writer:
        for split, labels in splits.items():
            writer.append(split, {"sketches": np.zeros((len(labels), 2, 1)), "labels": labels})
        writer.close(manifest)
    return open_capsules(path)


def test_trainable(tmp_path: Path) -> None:
    labelled(tmp_path / "a.h5", {"train": np.array([-100, 3, 3, 1])}, num_classes=4).require_trainable()
    labelled(tmp_path / "b.h5", {"train": np.array([[3, -100], [1, -100]])}).require_trainable()


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"test": np.array([0, 1])}, "has no train split, only test"),
        ({"train": np.array([2, 2, -100]), "test": np.array([0, 1])}, "all training labels are 2"),
        ({"train": np.array([[0, 0], [0, 0]])}, "all training labels are 0"),
        ({"train": np.array([-100, -100])}, "every training label is -100"),
    ],
)
def test_not_trainable(splits: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as refusal:
        labelled(tmp_path / "a.h5", splits).require_trainable()
    assert refusal.value.hint


def test_without_labels_or_with_impossible_ones(tmp_path: Path, capsule_path: Path) -> None:
    with CapsuleWriter(tmp_path / "a.h5", num_capsules=2, dim=1, label_rank=0) as writer:
        writer.append("train", {"sketches": np.zeros((3, 2, 1))})
        writer.close({})
    with pytest.raises(DataError, match="has no labels"):
        open_capsules(tmp_path / "a.h5").require_trainable()
    with h5py.File(capsule_path, "r+") as h5:
        h5["train/labels"][50] = 7
    with pytest.raises(DataError, match="outside 0 to 7 - 1"):
        CapsuleFile(capsule_path, inspect_structure(capsule_path)).require_trainable()


@pytest.mark.parametrize("label", [-5, 7, -(2**63)])
def test_impossible_labels_of_any_split(label: int, capsule_path: Path) -> None:
    """A network cannot be scored on them: on a GPU it would not even say why."""
    with h5py.File(capsule_path, "r+") as h5:
        h5["test/labels"][3] = label
        h5["train/labels"][3] = -100
    file = CapsuleFile(capsule_path, inspect_structure(capsule_path))
    assert file.require_labels("train") == (0, 6)
    with pytest.raises(DataError, match=r"test labels reach from .*, outside 0 to 7 - 1"):
        file.require_labels("test")


def test_what_a_file_does_not_have(capsule_path: Path) -> None:
    file = open_capsules(capsule_path)
    with pytest.raises(DataError, match="has no split 'validation'"):
        file.read("validation", slice(None))
    with pytest.raises(DataError, match="has no field 'colour'"):
        file.read("train", slice(None), ["colour"])
    for index in (np.array([100]), np.array([-1]), np.array([0.5]), np.ones(100, bool)):
        with pytest.raises(IndexError):
            file.read("train", index)
    file.close()


def test_file_changed_while_in_use(capsule_path: Path) -> None:
    file = open_capsules(capsule_path)
    file.read("train", slice(0, 1))
    file.close()
    with h5py.File(capsule_path, "r+") as h5:
        h5["train/labels"][50] = 1
    with pytest.raises(DataError, match="was changed while in use"):
        file.read("train", slice(0, 1))


# --- what training and evaluation look at ---


def with_strange_checksums(path: Path, split: str, rows: slice | int, value: float = 0.5) -> Path:
    tiny.write_capsules(path, {"train": 96, "validation": 40, "test": 30})
    with h5py.File(path, "r+") as h5:
        h5[f"{split}/checksums"][rows] = value
    return path


def test_checksums_of_other_children_are_refused_for_training(tmp_path: Path) -> None:
    path = with_strange_checksums(tmp_path / "a.h5", "train", slice(None))
    done = tiny.invoke("train", *tiny.as_overrides(data={"path": path}, training={"run_dir": tmp_path / "run"}))
    assert done.returncode == 4, done.stderr
    assert f"{path}: train/checksums: row 0 does not belong to its children (64 of 64 rows" in done.stderr
    assert "build the file again from its source" in done.stderr
    assert not (tmp_path / "run").exists()


def test_checksums_of_other_children_are_refused_in_an_evaluation(tmp_path: Path, trained_run: Path) -> None:
    path = with_strange_checksums(tmp_path / "a.h5", "test", 17)
    evaluated = tiny.invoke("eval", trained_run, "--data", path, "--policy", "never", "--split", "test")
    assert evaluated.returncode == 4, evaluated.stderr
    assert f"{path}: test/checksums: row 17 does not belong to its children (1 of 30 rows" in evaluated.stderr
    settings = {"data": {"path": path, "eval_split": "test"}, "training": {"run_dir": tmp_path / "run"}}
    assert "row 17 does not" in tiny.invoke("train", *tiny.as_overrides(**settings)).stderr
    # Validation is whole, and all that is used here.
    assert tiny.invoke("eval", trained_run, "--data", path, "--policy", "never").returncode == 0


def test_checksums_that_are_no_numbers_are_called_so(tmp_path: Path) -> None:
    path = with_strange_checksums(tmp_path / "a.h5", "train", 0, np.nan)
    with open_capsules(path) as file, pytest.raises(DataError, match="train/checksums: row 0 holds NaN"):
        require_checksums(file, "train")


def test_what_cannot_be_verified_passes(tmp_path: Path) -> None:
    """Of legacy files nobody knows the seed, and without children there is nothing to compare with."""
    path = with_strange_checksums(tmp_path / "a.h5", "train", slice(None))
    with h5py.File(path, "r+") as h5:
        edit_manifest(h5, checksum_seed=None)
    with open_capsules(path) as file:
        require_checksums(file, "train")
