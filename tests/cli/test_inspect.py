"""`trm inspect-dataset` as a user runs it: what it shows, what it finds, its exit codes, its picture."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny

from trm_core.config.schema import BuildConfig
from trm_core.data.build.pipeline import build_capsules
from trm_core.data.inspect import inspect_dataset
from trm_core.data.store import open_capsules
from trm_core.data.store.writer import CapsuleWriter
from trm_core.diagnose.registry import OF_DATA

# Checks of capsule files that need nothing else; those of puzzles cannot tell, and are not counted.
OF_PUZZLES = ("identifiers-unknown", "answers-copied", "answers-contradict")
JUDGED = len([check for check in OF_DATA if check.id not in OF_PUZZLES])


def run(*arguments: str | Path, cwd: Path) -> tiny.Outcome:
    with contextlib.chdir(cwd):
        return tiny.invoke("inspect-dataset", *arguments)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "digits.h5"
    build_capsules(["digits"], path, BuildConfig())
    return path


def test_what_it_shows(digits: Path, tmp_path: Path) -> None:
    result = tiny.run_trm("inspect-dataset", str(digits), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for text in (
        "k = 16, m = 4, D = 1, R = 4",
        "children, checksums, labels, parents",
        "mask, modality, prices",
        "1797 x 16 x 4 x 1",
        "what EXPAND can be worth here: ",
        "no problems found",
    ):
        assert text in result.stdout


def test_json_and_one_split(digits: Path, tmp_path: Path) -> None:
    result = run(digits, "--json", "--split", "test", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert list(document["splits"]) == ["test"]
    facts = document["splits"]["test"]
    assert facts["rows"] == 180
    assert sum(facts["labels"].values()) == 180
    assert facts["chance"] == pytest.approx(0.1)
    assert facts["repeated"] == 0
    assert len(facts["detail"]) == 16
    assert document["problems"] == []
    assert {one["verdict"] for one in document["checks"]} == {"ok"}
    assert {"labels-leaked", "duplicate-across-splits", "splits-differ"} < {one["id"] for one in document["checks"]}
    with h5py.File(digits) as file:
        values = file["test/sketches"][()].astype(np.float64)
    mean, low, high = facts["norms"]["sketches"]
    assert mean == pytest.approx(np.abs(values).mean(), rel=1e-3)
    assert (low, high) == (pytest.approx(0.0), pytest.approx(np.abs(values).max()))


def test_the_picture(digits: Path, tmp_path: Path) -> None:
    from PIL import Image

    result = run(digits, "--plot", "out.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width > 1000
        assert len(set(picture.convert("L").resize((200, 150)).tobytes())) > 50
    assert run(digits, "--plot", "out.txt", cwd=tmp_path).returncode == 2


def write(path: Path, rows: dict[str, np.ndarray], **manifest: object) -> Path:
    """A file of children [n, 2, 2, 3] with labels 0, 1, 0, ..."""
    with CapsuleWriter(path, num_capsules=2, dim=3, num_children=2, dtype="float32") as writer:
        for split, children in rows.items():
            writer.append(
                split,
                {"sketches": children.mean(axis=2), "children": children, "labels": np.arange(len(children)) % 2},
            )
        writer.close({"kind": "arrays", "num_classes": 2, "task": "classes"} | manifest)
    return path


def test_duplicates_across_splits_are_a_problem(tmp_path: Path) -> None:
    children = np.random.default_rng(0).standard_normal((20, 2, 2, 3)).astype(np.float32)
    path = write(tmp_path / "a.h5", {"train": children, "test": np.concatenate([children[:3], children[:1] + 9])})
    found = inspect_dataset(path)
    assert found.across_splits == {"train/test": 3}
    result = run(path, cwd=tmp_path)
    assert result.returncode == 1
    assert "3 samples of test also occur in train" in result.stdout
    assert "FAIL  duplicate-across-splits: 75 % of the test samples are also training samples" in result.stdout
    assert f"failed: 1 of {JUDGED} checks: duplicate-across-splits" in result.stderr
    assert "no problems found" not in result.stdout
    quick = run(path, "--quick", cwd=tmp_path)
    assert quick.returncode == 0
    assert "3 samples of test also occur in train" in quick.stdout
    assert "the checks were left out" in quick.stdout
    ignored = run(path, "--ignore", "duplicate-across-splits", cwd=tmp_path)
    assert ignored.returncode == 0
    assert "duplicate-across-splits" not in ignored.stdout
    within = write(tmp_path / "b.h5", {"train": np.concatenate([children, children[:4]])})
    assert inspect_dataset(within).splits["train"].repeated == 4
    assert run(within, cwd=tmp_path).returncode == 0


def test_values_that_were_damaged_are_a_problem(capsule_file: Path, tmp_path: Path) -> None:
    for name, spoil, message in (
        ("nan", ("train/children", np.nan), "NaN"),
        ("checksum", ("test/checksums", 7.0), "checksum"),
        ("hash", ("train/sketches", 0.25), "sha256 differs"),
        ("held out", ("validation/sketches", np.inf), "NaN"),
        ("label", ("validation/labels", -5), "a label below 0"),
    ):
        path = tmp_path / f"{name}.h5"
        path.write_bytes(capsule_file.read_bytes())
        with h5py.File(path, "r+") as file:
            file[spoil[0]][5] = spoil[1]
        result = run(path, cwd=tmp_path)
        assert result.returncode == 1, result.stderr
        assert message in result.stderr
        assert "Traceback" not in result.stderr


Splits = dict[str, dict[str, np.ndarray]]


def shuffled(splits: Splits) -> None:
    splits["train"]["labels"] = np.random.default_rng(0).permutation(splits["train"]["labels"])


def leaked(splits: Splits) -> None:
    for arrays in splits.values():
        arrays["sketches"][:, :10, 0] = np.eye(10)[arrays["labels"]]


def scaled(splits: Splits) -> None:
    """Of the test split alone, which is not the one that a run judges by itself."""
    splits["test"]["sketches"] *= 3
    splits["test"]["children"] *= 3


def told(splits: Splits) -> None:
    for arrays in splits.values():
        arrays["children"][:] = arrays["sketches"][:, :, None]


def judged_twice(splits: Splits) -> None:
    """The model never saw them, but what was chosen on validation did."""
    splits["test"] = {name: values.copy() for name, values in splits["validation"].items()}


@pytest.mark.parametrize(
    ("how", "check", "words"),
    [
        (shuffled, "labels-shuffled", "fix: check that inputs and labels were not sorted separately"),
        (leaked, "labels-leaked", "A label seems to have got into the inputs."),
        (scaled, "splits-differ", "of the test split lie"),
        (told, "children-equal-sketch", "fix: arch.enable_capsule_expansion=false"),
        (judged_twice, "duplicate-across-splits", "100 % are validation samples too"),
    ],
)
def test_what_is_wrong_with_sound_bytes(
    digits: Path, tmp_path: Path, how: Callable[[Splits], None], check: str, words: str
) -> None:
    """With one thing changed, written as builders write it."""
    with open_capsules(digits) as file:
        splits = {
            name: file.read(name, slice(0, rows), ("sketches", "children", "labels"))
            for name, rows in file.rows.items()
        }
    how(splits)
    with CapsuleWriter(tmp_path / "a.h5", num_capsules=16, dim=1, num_children=4, dtype="float32") as writer:
        for name, arrays in splits.items():
            writer.append(name, arrays)
        writer.close({"kind": "arrays", "num_classes": 10, "task": "classes"})
    result = run("a.h5", cwd=tmp_path)
    assert result.returncode == 1
    assert f"FAIL  {check}" in result.stdout
    assert words in result.stdout
    assert f"failed: 1 of {JUDGED} checks: {check}" in result.stderr


@pytest.mark.parametrize("sources", [5, "x", [5, {"path": None}], {"path": "x"}, None])
def test_a_manifest_that_no_builder_wrote_is_shown(digits: Path, tmp_path: Path, sources: object) -> None:
    path = tmp_path / "odd.h5"
    path.write_bytes(digits.read_bytes())
    with h5py.File(path, "r+") as file:
        manifest = json.loads(bytes(file.attrs["manifest"])) | {"sources": sources, "encoder": [1], "tool_version": {}}
        tiny.set_text(file, "manifest", json.dumps(manifest))
    done = tiny.invoke("inspect-dataset", path)
    assert done.returncode == 0, done.stderr
    assert "no problems found" in done.stdout


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no")
    assert run("text.h5", cwd=tmp_path).returncode == 4
    assert run("missing.h5", cwd=tmp_path).returncode == 4
    (tmp_path / "bad.pt").write_bytes(b"no")
    result = run("bad.pt", cwd=tmp_path)
    assert result.returncode == 4
    assert result.stdout == ""


def test_an_unknown_split(digits: Path, tmp_path: Path) -> None:
    result = run(digits, "--split", "tset", cwd=tmp_path)
    assert result.returncode == 4
    assert "it has train, validation, test" in result.stderr


def test_a_legacy_file(tmp_path: Path) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    children = torch.randn(30, 4, 2, 5, generator=generator)
    torch.save(
        {"sketches": children.mean(2), "children": children, "checksums": torch.zeros(30, 4, 3)}, tmp_path / "a.pt"
    )
    result = run("a.pt", "--plot", "a.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "cannot be verified" in result.stdout
    assert (tmp_path / "a.png").stat().st_size > 10_000
