"""Whole builds of Sudokus and mazes: layout, copies, splits, workers, and what can be wrong with a source."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trm_core.config.schema import PuzzleBuildConfig
from trm_core.data.puzzles.build.kinds import build_puzzles
from trm_core.data.puzzles.build.maze.generate import generate as mazes
from trm_core.data.puzzles.build.maze.grid import SYMBOLS
from trm_core.data.puzzles.build.maze.grid import forms as maze_forms
from trm_core.data.puzzles.build.report import BuiltPuzzles
from trm_core.data.puzzles.build.sudoku.augment import symmetric_copies
from trm_core.data.puzzles.build.sudoku.forms import forms
from trm_core.data.puzzles.build.sudoku.generate import generate as sudokus
from trm_core.data.puzzles.build.sudoku.geometry import GEOMETRIES
from trm_core.data.puzzles.reader import open_puzzles
from trm_core.errors import ConfigError, DataError, TrmError, UsageError

PUZZLES, SOLUTIONS = sudokus(0, 24, 0, GEOMETRIES[6], None)
SOLVABLE = "".join(map(str, PUZZLES[0]))
SOLVED = "".join(map(str, SOLUTIONS[0]))


def build(kind: str, out: Path, *sources: Path, **settings: Any) -> BuiltPuzzles:
    config = PuzzleBuildConfig.model_validate(settings)
    return build_puzzles(kind, sources, out, config, progress=lambda *_: None, log=lambda _: None)


def text(grid: np.ndarray) -> str:
    return "".join(map(str, grid.tolist()))


def write_csv(path: Path, rows: Sequence[Sequence[object]], header: str = "source,question,answer,rating") -> Path:
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def arrays(out: Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    names = ("inputs", "labels", "group_indices")
    inputs, labels, groups = (np.load(out / split / f"all__{name}.npy") for name in names)
    return inputs, labels, groups


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_generated_sudokus_in_the_public_layout(tmp_path: Path) -> None:
    out = tmp_path / "s"
    built = build("sudoku", out, count=10, size=9, test=0.2, augmentations=3, clues=40)
    assert (built.splits["train"].groups, built.splits["train"].examples) == (8, 32)
    assert (built.splits["test"].groups, built.splits["test"].examples) == (2, 2)
    metadata = json.loads((out / "train" / "dataset.json").read_text())
    assert metadata == {
        "pad_id": 0,
        "ignore_label_id": 0,
        "blank_identifier_id": 0,
        "vocab_size": 11,
        "seq_len": 81,
        "num_puzzle_identifiers": 1,
        "total_groups": 8,
        "mean_puzzle_examples": 1.0,
        "total_puzzles": 8,
        "sets": ["all"],
    }
    inputs, labels, groups = arrays(out, "train")
    assert groups.tolist() == list(range(0, 33, 4))
    assert inputs.min() == 1
    assert labels.min() == 2
    assert labels.max() == 10
    assert ((inputs == 1) | (inputs == labels)).all()
    found = forms(inputs - 1, GEOMETRIES[9]).reshape(8, 4)
    assert (found == found[:, :1]).all()
    assert len(np.unique(inputs, axis=0)) == 32
    open_puzzles(out).require_trainable()
    assert json.loads((out / "identifiers.json").read_text()) == ["<blank>"]
    assert json.loads((out / "trm.json").read_text())["settings"]["train_forms"] == 8


@pytest.mark.parametrize(
    ("kind", "settings"), [("sudoku", {"size": 4, "count": 130}), ("maze", {"size": 8, "count": 60})]
)
def test_workers_change_nothing(tmp_path: Path, kind: str, settings: dict[str, int]) -> None:
    build(kind, tmp_path / "alone", augmentations=2, **settings)
    build(kind, tmp_path / "two", augmentations=2, workers=2, **settings)
    assert content(tmp_path / "alone") == content(tmp_path / "two")


def test_symmetric_copies_in_a_source_stay_on_one_side(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for puzzle, solution in zip(PUZZLES, SOLUTIONS, strict=True):
        copies, answers = symmetric_copies(puzzle, solution, GEOMETRIES[6], 4, rng)
        lines += [f"{text(copy)} {text(answer)}" for copy, answer in zip(copies, answers, strict=True)]
    source = write_lines(tmp_path / "copies.txt", *lines)
    built = build("sudoku", tmp_path / "s", source, test=0.25)
    train, test = (set(forms(arrays(tmp_path / "s", split)[0] - 1, GEOMETRIES[6])) for split in ("train", "test"))
    assert len(train) == 18
    assert len(test) == 6
    assert not train & test
    assert any("54 of 72 training puzzles are symmetric copies" in note for note in built.notes)


def test_a_folder_with_a_test_file_and_ratings(tmp_path: Path) -> None:
    rows = [
        ("me", text(p).replace("0", "."), text(s), i) for i, (p, s) in enumerate(zip(PUZZLES, SOLUTIONS, strict=True))
    ]
    copy, answer = symmetric_copies(PUZZLES[10], SOLUTIONS[10], GEOMETRIES[6], 1, np.random.default_rng(0))
    write_csv(tmp_path / "in" / "train.csv", rows[:20])
    write_csv(tmp_path / "in" / "test.csv", [*rows[20:], ("me", text(copy[0]), text(answer[0]), 0)])
    built = build("sudoku", tmp_path / "s", tmp_path / "in", min_rating=5)
    # 15 of 20 are hard enough, and one of them has a copy among the held-out ones.
    assert (built.splits["train"].groups, built.splits["test"].groups) == (14, 5)
    assert any(note.startswith("1 training puzzles were left out") for note in built.notes)
    build("sudoku", tmp_path / "drawn", tmp_path / "in", subsample=3, min_rating=11)
    drawn = arrays(tmp_path / "drawn", "train")[0] - 1
    assert {text(puzzle) for puzzle in drawn} <= {text(puzzle) for puzzle in PUZZLES[11:20]}
    assert len(drawn) == 3


def test_questions_without_answers_are_solved(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "q.csv", [[text(p)] for p in PUZZLES], header="Puzzle")
    build("sudoku", tmp_path / "s", source, test=0)
    assert (arrays(tmp_path / "s", "train")[1] - 1 == SOLUTIONS).all()
    assert not (tmp_path / "s" / "test").exists()


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([SOLVABLE, SOLVABLE[1:]], "line 2: a puzzle of 35 characters where the first puzzle has 36"),
        ([SOLVABLE[1:]], "line 1: a puzzle of 35 characters"),
        ([SOLVABLE, "", "x" + SOLVABLE[1:]], "line 3: the character 'x' in a puzzle"),
        ([SOLVABLE, "é" + SOLVABLE[1:]], "line 2: the character 'é' in a puzzle"),
        (["7" + SOLVABLE[1:]], "line 1: the character '7' in a puzzle"),
        ([SOLVABLE, "0" * 36, "0" * 36], r"line 2: the puzzle has several solutions \(and 1 more"),
        ([SOLVABLE, "11" + "0" * 34], "line 2: the puzzle has no solution"),
        ([f"{SOLVABLE},{SOLVED[::-1]}"], "line 1: the solution in the file does not solve the puzzle"),
        ([f"{SOLVABLE},{SOLVED[:-1]}"], "line 1: a solution of 35 characters"),
        ([f"{SOLVABLE},{SOLVED[:-1]}?"], r"line 1: the character '\?' in a solution"),
        ([f"{SOLVABLE} {SOLVED} 7"], "line 1: 3 words"),
        ([SOLVABLE, SOLVABLE], "all 2 puzzles are symmetric copies of one"),
        ([""], "no puzzles in it"),
        (["source,clues,answer"], "line 1: no column of questions"),
        (["question,answer", f"{SOLVABLE},{SOLVED}", SOLVABLE], "line 3: 1 columns, the header has 2"),
        (["question,rating", f"{SOLVABLE},hard"], "line 2: the rating 'hard' is not a number"),
    ],
)
def test_bad_sudokus(tmp_path: Path, lines: list[str], problem: str) -> None:
    source = write_lines(tmp_path / "bad.txt", *lines)
    with pytest.raises(DataError, match=problem) as caught:
        build("sudoku", tmp_path / "s", source)
    assert str(source) in caught.value.message or "copies of one" in problem
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["bad.txt"]


def test_sources_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        build("sudoku", tmp_path / "s", tmp_path / "missing.txt")
    (tmp_path / "binary.txt").write_bytes(SOLVABLE.encode() + b"\n\xff\xfe\n")
    with pytest.raises(DataError, match="not a text file"):
        build("sudoku", tmp_path / "s", tmp_path / "binary.txt")
    with pytest.raises(DataError, match=r"without train\.csv"):
        build("sudoku", tmp_path / "s", tmp_path)


def test_unequal_sizes_of_training_and_test(tmp_path: Path) -> None:
    four = write_lines(tmp_path / "four.txt", text(sudokus(0, 1, 0, GEOMETRIES[4], None)[0][0]))
    six = write_lines(tmp_path / "six.txt", SOLVABLE)
    with pytest.raises(DataError, match="4 x 4, training puzzles of 6 x 6"):
        build("sudoku", tmp_path / "s", six, test_source=str(four))
    with pytest.raises(DataError, match=r"four\.txt, line 1: a puzzle of 16 characters where the first puzzle has 36"):
        build("sudoku", tmp_path / "s", six, four)
    with pytest.raises(DataError, match="no puzzle is left"):
        build("sudoku", tmp_path / "s", six, test_source=str(six))


@pytest.mark.parametrize(
    ("kind", "settings", "error", "problem"),
    [
        ("sudoku", {"size": 5}, ConfigError, "size: a Sudoku of 5 digits"),
        ("sudoku", {"size": 4, "clues": 17}, ConfigError, "17 clues in 16 cells"),
        ("sudoku", {"min_path": 9}, UsageError, "min_path is for maze"),
        ("sudoku", {"min_rating": 1, "count": 2, "size": 4}, DataError, "no rating"),
        ("maze", {"size": 3}, ConfigError, "a maze of 3 x 3"),
        ("maze", {"size": 5, "min_path": 24}, ConfigError, "no shortest path of 24 cells"),
        ("arc", {}, UsageError, "no source"),
        ("sudoko", {}, UsageError, "not a kind of puzzle"),
    ],
)
def test_bad_settings(tmp_path: Path, kind: str, settings: dict[str, int], error: type[TrmError], problem: str) -> None:
    with pytest.raises(error, match=problem):
        build(kind, tmp_path / "s", **settings)
    assert not list(tmp_path.iterdir())


def test_mazes_from_csv(tmp_path: Path) -> None:
    questions, answers = mazes(0, 12, 0, 7, 8)
    as_text = ["".join(SYMBOLS[token] for token in grid) for grid in np.concatenate([questions, answers])]
    # Mirror images of all of them, which must stay with theirs.
    mirrored = ["".join(t[i : i + 7][::-1] for i in range(0, 49, 7)) for t in as_text]
    rows = [("me", q, a, 1) for t in (as_text, mirrored) for q, a in zip(t[:12], t[12:], strict=True)]
    source = write_csv(tmp_path / "m.csv", rows)
    built = build("maze", tmp_path / "m", source, test=0.25, augmentations=9)
    assert (built.splits["train"].groups, built.splits["train"].puzzles, built.splits["test"].groups) == (18, 144, 6)
    train, test = (set(maze_forms(arrays(tmp_path / "m", split)[0], 7)) for split in ("train", "test"))
    assert not train & test
    inputs, labels, _ = arrays(tmp_path / "m", "train")
    assert len(np.unique(inputs[:8], axis=0)) == 8
    assert (np.where(labels == 5, 2, labels) == inputs).all()
    build("maze", tmp_path / "three", source, augmentations=3)
    assert len(np.unique(arrays(tmp_path / "three", "train")[0][:4], axis=0)) == 4


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (("me", "S G", "SoG", 1), "line 2: a puzzle of 3 characters"),
        (("me", "S x  G###", "", 1), "line 2: the character 'x'"),
        (("me", "S #  #  G", "SooooG###", 1), "line 2: the solution changes the maze"),
    ],
)
def test_bad_mazes(tmp_path: Path, row: tuple[object, ...], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        build("maze", tmp_path / "m", write_csv(tmp_path / "m.csv", [row]))


def test_mazes_need_a_header(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column of questions"):
        build("maze", tmp_path / "m", write_lines(tmp_path / "m.txt", "S  ## G##"))
