"""Puzzles by how much there was to find out."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from trm_core.evaluation.by_difficulty import MOST_GROUPS, ranges


@given(st.lists(st.integers(0, 60), min_size=1, max_size=300))
def test_groups_hold_every_puzzle_once_and_are_of_about_equal_size(cells: list[int]) -> None:
    found = ranges(np.array(cells))
    assert len(found) <= MOST_GROUPS
    assert [sum(first <= one <= last for first, last in found) for one in cells] == [1] * len(cells)
    assert all(one[1] < other[0] for one, other in pairwise(found))
    assert all(first in cells and last in cells for first, last in found)
    most_equal = max(cells.count(one) for one in cells)
    sizes = [sum(first <= one <= last for one in cells) for first, last in found]
    if len(set(cells)) > MOST_GROUPS:
        assert max(sizes) <= len(cells) / MOST_GROUPS + most_equal


def test_nothing_has_no_groups() -> None:
    assert ranges(np.zeros(0, np.int64)) == []


def test_eval_tells_puzzles_apart_by_the_cells_to_fill(sudoku_run: Path, sudoku_folder: Path) -> None:
    done = tiny.invoke("eval", sudoku_run, "--policy", "act,never", "--by-difficulty", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    questions, answers = (np.load(sudoku_folder / "test" / f"all__{name}.npy") for name in ("inputs", "labels"))
    cells = (questions != answers).sum(1)
    assert [one["policy"] for one in document["by_difficulty"]["policies"]] == ["act", "never"]
    for told, score in zip(document["by_difficulty"]["policies"], document["scores"], strict=True):
        groups = told["groups"]
        weights = [one["puzzles"] for one in groups]
        assert weights == [int(((one["fewest"] <= cells) & (cells <= one["most"])).sum()) for one in groups]
        assert sum(weights) == len(cells) == score["rows"]
        for name, whole in (("exact", "exact_accuracy"), ("cells", "accuracy"), ("steps", "steps")):
            assert np.average([one[name] for one in groups], weights=weights) == pytest.approx(score[whole])
        assert all(one["low"] <= one["exact"] <= one["high"] for one in groups)
    printed = tiny.invoke("eval", sudoku_run, "--by-difficulty").stdout
    assert "act: by cells to fill" in printed
    assert "never: by cells to fill" not in printed, "only the first policy, unless some are named"


def test_without_answers_there_is_nothing_to_tell(sudoku_run: Path, sudoku_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sudoku_folder, tmp_path / "sudoku")
    ignored = json.loads((folder / "test" / "dataset.json").read_text())["ignore_label_id"]
    answers = np.load(folder / "test" / "all__labels.npy")
    np.save(folder / "test" / "all__labels.npy", np.full_like(answers, ignored))
    done = tiny.invoke("eval", sudoku_run, "--data", folder, "--by-difficulty")
    assert (done.returncode, done.stdout) == (2, "")
    assert "test holds no answers to compare with" in done.stderr


def test_capsules_have_no_difficulty(trained_run: Path) -> None:
    done = tiny.invoke("eval", trained_run, "--by-difficulty")
    assert (done.returncode, done.stdout) == (2, "")
    assert "whose difficulty nothing tells" in done.stderr
