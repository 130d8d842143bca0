"""What is found in puzzle folders, against plain loops, and what is said of those in which something is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny_puzzles import SIZE, VOCAB, write_puzzles

from trm_core.data.fields import IGNORE_LABEL
from trm_core.data.puzzles.inspect import inspect_puzzles
from trm_core.data.puzzles.reader import open_puzzles
from trm_core.data.puzzles.survey import digests, survey, told_by_best


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_puzzles(tmp_path / "puzzles", groups=200, copies=2, examples=2, identifiers=3)


def change(folder: Path, field: str, how: Callable[[np.ndarray], np.ndarray], split: str = "train") -> None:
    path = folder / split / f"all__{field}.npy"
    np.save(path, how(np.load(path)))


def test_counts_are_those_of_a_loop(folder: Path) -> None:
    random = np.random.default_rng(0)
    change(folder, "labels", lambda a: np.where(random.random(a.shape) < 0.3, 0, a).astype(np.uint8))
    data = open_puzzles(folder)
    found = survey(data, "train")
    rows = data.read("train", slice(0, 800))
    asked, said = rows["sketches"].ravel(), rows["labels"].ravel()
    for token in range(VOCAB):
        assert found.inputs[token] == (asked == token).sum()
        assert found.labels[token] == (said == token).sum()
    assert found.ignored == (said == IGNORE_LABEL).sum()
    assert found.unanswered == (rows["labels"] == IGNORE_LABEL).all(1).sum()
    pairs = [(a.tobytes(), b.tobytes()) for a, b in zip(rows["sketches"], rows["labels"], strict=True)]
    assert found.repeated == len(pairs) - len(set(pairs))


def test_some_rows_are_as_good_as_all(folder: Path) -> None:
    data = open_puzzles(folder)
    some = survey(data, "train", np.arange(0, 800, 4))
    assert some.examples == 200
    assert some.inputs.sum() == 200 * SIZE


def test_what_a_token_tells() -> None:
    """Of the best one, as long as it is not too rare."""
    assert told_by_best(np.eye(4)) == pytest.approx(np.log(4))
    assert told_by_best(np.ones((4, 4))) == pytest.approx(0.0)
    assert told_by_best(np.zeros((4, 4))) == 0.0
    assert told_by_best(np.array([[3.0, 1.0], [1.0, 3.0]])) == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    blank = np.diag([0.0, 10, 10, 10, 10])
    assert told_by_best(blank + np.array([[0.0, 90, 90, 90, 90], *[[0.0] * 5] * 4])) == pytest.approx(np.log(4))
    assert told_by_best(np.array([[999.0, 999], [1, 0]])) == pytest.approx(0.0, abs=1e-6)


def test_rows_that_differ_have_other_digests() -> None:
    rows = np.unique(np.random.default_rng(0).integers(-1, 3, (50_000, 9)), axis=0)
    assert len(np.unique(digests([rows, rows[:, ::-1]]))) == len(rows)
    assert len(np.unique(digests([rows[:, :4], rows[:, 4:]]))) == len(rows)
    assert np.array_equal(digests([rows]), digests([rows.astype(np.int32)]))


def test_a_sound_folder_has_no_problems(folder: Path) -> None:
    found = inspect_puzzles(folder)
    facts = found.splits["train"]
    assert (facts.examples, facts.puzzles, facts.groups) == (800, 400, 200)
    assert facts.examples_per_puzzle == (2.0, 2, 2)
    assert found.notes == []
    assert list(inspect_puzzles(folder, "test").splits) == ["test"]


def unlabelled(labels: np.ndarray) -> np.ndarray:
    return np.zeros_like(labels)


@pytest.mark.parametrize(
    ("split", "how", "words"),
    [
        ("train", unlabelled, "answers-missing: 100 % of the training puzzles have no answer"),
        ("test", unlabelled, "answers-missing: every label of the test puzzles is to be ignored"),
        ("train", lambda labels: labels[:, ::-1], "answers-copied: 100 % of the training puzzles have every answer"),
        ("test", lambda labels: labels[:, ::-1], "answers-copied (likely): "),
    ],
)
def test_folders_that_teach_nothing(
    folder: Path, split: str, how: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    change(folder, "labels", how, split)
    done = tiny.invoke("inspect-dataset", folder)
    assert done.returncode == 1
    assert f"FAIL  {words}" in done.stdout


def test_test_puzzles_among_those_of_training(folder: Path) -> None:
    for field in ("inputs", "labels"):
        train = np.load(folder / "train" / f"all__{field}.npy")
        change(folder, field, lambda a, train=train: np.concatenate([train[:7], np.roll(a[7:], 1, 1)]), "test")
    found = inspect_puzzles(folder)
    assert found.shared >= 7
    done = tiny.invoke("inspect-dataset", folder, "--json")
    assert done.returncode == 1
    assert "duplicate-across-splits" in done.stderr
    document = json.loads(done.stdout)
    assert document["shared"] == found.shared
    (copies,) = (one for one in document["checks"] if one["id"] == "duplicate-across-splits")
    assert copies["verdict"] == "fail"
    assert copies["numbers"]["share"] == pytest.approx(found.shared / found.splits["test"].examples)


def test_one_question_with_two_answers(folder: Path) -> None:
    """Of one puzzle that is a contradiction; of two puzzles it is how puzzles are told apart."""
    change(folder, "inputs", lambda a: np.concatenate([a[:1], a[:1], a[2:]]))
    change(folder, "labels", lambda a: np.concatenate([[[1] * SIZE], [[2] * SIZE], a[2:]]).astype(np.uint8))
    before = inspect_puzzles(folder).splits["train"].contradicting
    assert before >= 1
    change(folder, "inputs", lambda a: np.concatenate([a[:1], a[3:4], a[2:]]))
    assert inspect_puzzles(folder).splits["train"].contradicting < before


def test_the_command_says_it(folder: Path) -> None:
    (folder / "trm.json").write_text(
        json.dumps({"kind": "tokens", "height": 2, "width": 3, "symbols": ["pad", "a", "b", "\u001b[31m", "d"]})
    )
    known = {row.tobytes() for row in np.load(folder / "train" / "all__inputs.npy")}
    rows = np.random.default_rng(3).integers(1, VOCAB, (2000, SIZE)).astype(np.uint8)
    new = np.array([row for row in rows if row.tobytes() not in known])
    change(folder, "inputs", lambda a: new[: len(a)], "test")
    change(folder, "labels", lambda a: new[: len(a), ::-1].copy(), "test")
    done = tiny.invoke("inspect-dataset", folder)
    assert done.returncode == 0, done.stderr
    assert "no problems found" in done.stdout
    assert "6 of each puzzle, out of 5" in done.stdout
    assert "\u001b" not in done.stdout
    document = json.loads(tiny.invoke("inspect-dataset", folder, "--json", "--split", "train").stdout)
    assert document["splits"]["train"]["examples"] == 800
    change(folder, "labels", unlabelled)
    done = tiny.invoke("inspect-dataset", folder)
    assert done.returncode == 1
    assert "answers-missing" in done.stderr
    assert tiny.invoke("inspect-dataset", folder, "--quick").returncode == 0
    assert tiny.invoke("inspect-dataset", folder, "--split", "validation").returncode == 4
    assert tiny.invoke("inspect-dataset", folder, "--plot", "x.png").returncode == 2
