"""`trm eval --by-class`: where the mistakes are, as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tiny

from trm_cli import class_table, console
from trm_core.data.fields import IGNORE_LABEL
from trm_core.evaluation import by_class


def document(run: Path, *options: object) -> dict[str, Any]:
    done = tiny.invoke("eval", run, "--json", *options)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def renamed(path: Path, names: list[str]) -> Path:
    """The file with names of its classes."""
    with h5py.File(path, "r+") as h5:
        manifest = json.loads(bytes(np.asarray(h5.attrs["manifest"])).decode())
        tiny.set_text(h5, "manifest", json.dumps({**manifest, "class_names": names}))
    return path


def without_labels(path: Path, split: str, rows: slice) -> Path:
    """The file with rows that have no label."""
    with h5py.File(path, "r+") as h5:
        h5[split]["labels"][rows] = IGNORE_LABEL
    return path


def test_the_matrix_is_that_of_the_scores(trained_run: Path) -> None:
    """Of the first policy; the table stays as it is, and the run's own evaluation does not hold it."""
    plain, found = document(trained_run), document(trained_run, "--by-class")
    classes = found.pop("by_class")
    assert found == plain
    assert "by_class" not in json.loads((trained_run / "evaluation.json").read_text())
    assert (classes["of"], classes["names"]) == ("samples", ["0", "1", "2"])
    (one,) = classes["policies"]
    score = plain["scores"][0]
    assert (one["policy"], one["setting"]) == (score["policy"], score["setting"]) == ("learned", score["setting"])
    matrix = np.array(one["matrix"])
    assert matrix.sum() == score["rows"] == 40
    assert matrix.trace() / 40 == pytest.approx(score["accuracy"])
    assert 0 < matrix.trace() < 40, "some mistakes, or this shows nothing"
    with h5py.File(plain["data"]["path"]) as h5:
        labels = np.asarray(h5["validation"]["labels"])
    assert matrix.sum(1).tolist() == np.bincount(labels).tolist() == [c["count"] for c in one["classes"]]
    for number, cell in enumerate(one["classes"]):
        assert cell["right"] == pytest.approx(matrix[number, number] / matrix[number].sum())
        assert cell["low"] <= cell["right"] <= cell["high"]


def test_each_policy_that_is_named_at_each_price(trained_run: Path) -> None:
    found = document(trained_run, "--by-class", "--policy", "never,learned", "--price", "0.001,10", "--split", "test")
    policies = found["by_class"]["policies"]
    assert [(one["policy"], one["setting"]) for one in policies] == [
        ("never", None), ("learned", 0.001), ("learned", 10.0)
    ]  # fmt: skip
    for one, score in zip(policies, found["scores"], strict=True):
        assert np.trace(one["matrix"]) / 30 == pytest.approx(score["accuracy"])
    assert len({str(one["matrix"]) for one in policies}) > 1


def test_names_and_rows_without_a_label(trained_run: Path, tmp_path: Path) -> None:
    path = tiny.write_capsules(tmp_path / "named.h5", {"test": 25}, seed=9)
    without_labels(renamed(path, ["ham", "spam", "\x1b[31m"]), "test", slice(0, 5))
    options = ("--data", path, "--policy", "all", "--by-class")
    classes = document(trained_run, *options)["by_class"]
    assert classes["names"] == ["ham", "spam", "\x1b[31m"]
    assert np.sum(classes["policies"][0]["matrix"]) == 20
    shown = tiny.invoke("eval", trained_run, *options).stdout
    assert "all: samples by class" in shown
    assert "\\x1b[31m" in shown
    assert "\x1b" not in shown
    lines = shown.splitlines()
    start = lines.index("all: labels down, answers across")
    assert lines[start + 1].split() == ["label", "ham", "spam", "\\x1b[31m"]
    assert lines[start + 2].split() == ["ham", *map(str, classes["policies"][0]["matrix"][0])]


def test_a_class_that_is_never_the_label(trained_run: Path, tmp_path: Path) -> None:
    path = tiny.write_capsules(tmp_path / "two.h5", {"test": 25}, seed=9)
    with h5py.File(path, "r+") as h5:
        labels = np.asarray(h5["test"]["labels"])
        h5["test"]["labels"][:] = np.where(labels == 1, 2, labels)
    shown = tiny.invoke("eval", trained_run, "--data", path, "--by-class", "--policy", "never")
    assert shown.returncode == 0, shown.stderr
    assert "1 of 3 classes never occur as a label here" in shown.stdout


def test_capsules_that_have_labels_of_their_own(tmp_path: Path) -> None:
    path = tiny.write_capsules(tmp_path / "each.h5", {"train": 40, "test": 20}, label_rank=2)
    without_labels(path, "test", slice(0, 6))
    run = tmp_path / "run"
    done = tiny.invoke("train", *tiny.as_overrides(data={"path": path}, training={"run_dir": run, "total_steps": 3}))
    assert done.returncode == 0, done.stderr
    found = document(run, "--by-class", "--policy", "never")
    (one,) = found["by_class"]["policies"]
    matrix = np.array(one["matrix"])
    assert found["by_class"]["of"] == "capsules"
    assert matrix.sum() == 14 * tiny.K
    assert matrix.trace() / matrix.sum() == pytest.approx(found["scores"][0]["accuracy"])
    assert all(cell["samples"] <= 14 for cell in one["classes"])
    assert "never: capsules by class" in tiny.invoke("eval", run, "--by-class", "--policy", "never").stdout


def test_puzzles_have_no_classes(sudoku_run: Path) -> None:
    done = tiny.invoke("eval", sudoku_run, "--by-class")
    assert (done.returncode, done.stdout) == (2, "")
    assert "holds puzzles" in done.stderr


def test_too_many_classes(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_class, "MOST_CLASSES", 2)
    done = tiny.invoke("eval", trained_run, "--by-class")
    assert (done.returncode, done.stdout) == (2, "")
    assert "has 3 classes" in done.stderr


def test_a_matrix_that_nobody_can_read_is_not_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"class {number}" for number in range(13)]
    cell = {"count": 2, "right": 0.5, "low": 0.1, "high": 0.9, "instead": "class 1", "instead_share": 0.5}

    def shown(classes: int) -> str:
        entry = {
            "policy": "never",
            "setting": None,
            "classes": [{"name": name, **cell} for name in names[:classes]],
            "matrix": [[1] * classes] * classes,
        }
        class_table.print_classes({"of": "samples", "names": names[:classes], "policies": [entry]})
        return capsys.readouterr().out

    assert "labels down" in shown(12)
    assert "the matrix of 13 classes is in the output of --json" in shown(13)
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    monkeypatch.setenv("COLUMNS", "60")
    assert "wider than this terminal" in shown(12)
    assert "labels down" in shown(3)
