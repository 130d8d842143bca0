"""What diagnosis says of puzzles that lie in the wrong place: copies over splits, offsets, tokens of another kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny_puzzles import ARCH

from tests.faults.puzzles import VOCAB, Puzzles, repeating, write_folder
from trm_core.data.puzzles.build.sudoku.generate import generate
from trm_core.data.puzzles.build.sudoku.geometry import GEOMETRIES
from trm_core.data.puzzles.reader import open_puzzles
from trm_core.diagnose import puzzle_facts
from trm_core.diagnose.check import Finding, Verdict
from trm_core.diagnose.checks import children, labels, puzzle_splits, puzzles, splits, twins
from trm_core.diagnose.diagnose import look
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.puzzle_examples import examples_of
from trm_core.diagnose.puzzle_facts import PuzzleFacts, facts_of, several_solutions
from trm_core.diagnose.puzzle_forms import renamed, shared_forms

OF_DATA = (*labels.CHECKS, twins.CHECK, *children.CHECKS, *splits.CHECKS, *puzzles.CHECKS, puzzle_splits.IDENTIFIERS)
CHECKS = {check.id: check for check in OF_DATA}
SIDE = 6


def write(folder: Path, inputs: dict[str, np.ndarray], labels: dict[str, np.ndarray], vocab: int) -> Path:
    """Grids of SIDE x SIDE cells, each a group of its own."""
    write_folder(Puzzles({split: {"inputs": inputs[split], "labels": labels[split]} for split in inputs}), folder)
    for split in inputs:
        path = folder / split / "dataset.json"
        changed = {"seq_len": SIDE * SIDE, "vocab_size": vocab, "ignore_label_id": None}
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    return folder


def found(folder: Path, name: str, **arch: object) -> Finding:
    evidence = Evidence(tiny.make_config(arch={**ARCH, **arch}), data=facts_of(folder))
    return look(CHECKS[name], evidence).finding


def turned(grids: np.ndarray, random: np.random.Generator, names: np.ndarray) -> np.ndarray:
    """Each [n, 2, 36] turned or mirrored, its tokens renamed among `names`."""
    copies = []
    for grid in grids:
        lookup = np.arange(grid.max() + 1)
        lookup[names] = random.permutation(names)
        square = np.rot90(lookup[grid].reshape(2, SIDE, SIDE), random.integers(4), axes=(1, 2))
        copies.append((square.swapaxes(1, 2) if random.random() < 0.5 else square).reshape(2, -1))
    return np.array(copies).reshape(grids.shape)


def sudoku_copies(grids: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Bands and stacks in another order, digits renamed: a grid that no turning gives."""
    rows = np.concatenate([band * 2 + random.permutation(2) for band in random.permutation(3)])
    columns = np.concatenate([stack * 3 + random.permutation(3) for stack in random.permutation(2)])
    moved = grids.reshape(-1, 2, SIDE, SIDE)[:, :, rows][..., columns].reshape(grids.shape)
    return np.concatenate([[0], random.permutation(SIDE) + 1])[moved]


def sudokus(random: np.random.Generator) -> np.ndarray:
    asked, solved = generate(0, 120, int(random.integers(1000)), GEOMETRIES[SIDE], 14)
    return np.stack([asked, solved], 1).astype(np.int64)


def pictures(random: np.random.Generator) -> np.ndarray:
    grids = random.integers(0, 5, (120, SIDE * SIDE))
    return np.stack([grids, grids[:, ::-1]], 1)


@pytest.mark.parametrize("kind", ["sudokus", "pictures"])
@pytest.mark.parametrize(("share", "expected"), [(0.0, Verdict.OK), (0.1, Verdict.WARN), (0.6, Verdict.FAIL)])
def test_copies_under_symmetries_across_splits(kind: str, share: float, expected: Verdict, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    grids = sudokus(random) if kind == "sudokus" else pictures(random)
    train, test = grids[:60], grids[60:].copy()
    count = round(share * len(test))
    if kind == "sudokus":
        test[:count] = sudoku_copies(train[:count], random)
    else:
        test[:count] = turned(train[:count], random, np.arange(5))
    assert not (train[:count] == test[:count]).all(axis=(1, 2)).any()
    inputs, labels = ({"train": train[:, place], "test": test[:, place]} for place in (0, 1))
    folder = write(tmp_path / "folder", inputs, labels, 7)
    said = found(folder, "duplicate-across-splits")
    assert said.verdict is expected, said.evidence
    assert said.numbers["symmetric"] == pytest.approx(share)


@pytest.mark.parametrize(("emptied", "expected"), [(0, Verdict.OK), (2, Verdict.WARN), (30, Verdict.FAIL)])
def test_sudokus_with_several_solutions(emptied: int, expected: Verdict, tmp_path: Path) -> None:
    """An empty row and the band's other one: these two can change places."""
    grids = sudokus(np.random.default_rng(2))
    train, test = grids[:60], grids[60:]
    train[:emptied, 0, : 2 * SIDE] = 0
    inputs, labels = ({"train": train[:, place], "test": test[:, place]} for place in (0, 1))
    folder = write(tmp_path / "folder", inputs, labels, 7)
    said = found(folder, "answers-contradict")
    assert said.verdict is expected
    assert ("more than one solution" in said.evidence) == (emptied > 0)


def test_answers_that_do_not_solve_their_sudokus_are_not_solved_for_them(tmp_path: Path) -> None:
    grids = sudokus(np.random.default_rng(2))
    inputs, labels = ({"train": grids[:60, place], "test": grids[60:, place]} for place in (0, 1))
    labels["train"] = np.roll(labels["train"], 1, axis=0)
    assert PuzzleFacts(write(tmp_path / "folder", inputs, labels, 7)).ambiguous is None


def test_rows_of_tokens_and_small_grids_have_no_known_symmetries(tmp_path: Path) -> None:
    write_folder(repeating(0), tmp_path)
    assert PuzzleFacts(tmp_path).symmetric is None


def test_tokens_are_renamed_in_the_order_of_their_first_places() -> None:
    rows = np.array([[4, 4, 0, -100, 2, 4], [1, 3, 2, 0, 4, 1]])
    assert renamed(rows, 5).tolist() == [[0, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 0]]


def changed(tmp_path: Path, change: Callable[[Puzzles], None]) -> Path:
    made = repeating(3, rows=800)
    change(made)
    write_folder(made, tmp_path / "folder")
    return tmp_path / "folder"


def renumber_test(made: Puzzles) -> None:
    given = np.arange(VOCAB)
    made.splits["test"]["labels"] = np.r_[0, np.roll(given[1:], 1)][made.splits["test"]["labels"]]


def move_by_one(made: Puzzles) -> None:
    made.splits["train"]["labels"] = np.roll(made.splits["train"]["labels"], 1, axis=1)


def rename_questions(made: Puzzles) -> None:
    """A marker that stays, and copies of which the answers kept their names."""
    random = np.random.default_rng(1)
    train = made.splits["train"]
    for row in range(0, len(train["inputs"]), 2):
        train["inputs"][row] = np.r_[0, random.permutation(np.arange(1, VOCAB))][train["inputs"][row]]


def ask_for_more(made: Puzzles) -> None:
    made.splits["test"]["inputs"][:, 2:6] = 0


def test_sound_rows_have_no_finding(tmp_path: Path) -> None:
    folder = changed(tmp_path, lambda made: None)
    loud = [name for name in CHECKS if found(folder, name).verdict in (Verdict.WARN, Verdict.FAIL)]
    assert not loud


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (renumber_test, "splits-differ", "mostly means"),
        (rename_questions, "labels-shuffled", "of the training cells"),
        (ask_for_more, "splits-differ", "standard deviations more or less frequent"),
        (move_by_one, "labels-shuffled", "1 cells after it"),
    ],
)
def test_what_is_wrong_is_said(change: Callable[[Puzzles], None], name: str, words: str, tmp_path: Path) -> None:
    said = found(changed(tmp_path, change), name)
    assert said.verdict is Verdict.FAIL
    assert words in said.evidence


def test_answers_beside_their_questions_everywhere_may_be_the_task(tmp_path: Path) -> None:
    """Those of a task that asks for the next token are, too."""

    def move_all(made: Puzzles) -> None:
        for fields in made.splits.values():
            fields["labels"] = np.roll(fields["labels"], 1, axis=1)

    said = found(changed(tmp_path, move_all), "labels-shuffled")
    assert (said.verdict, said.sure) == (Verdict.WARN, "possible")


@pytest.mark.parametrize(("vocab", "cells", "test"), [(100, 64, 60), (500, 32, 100), (2048, 36, 100)])
def test_large_vocabularies_and_few_examples_are_no_difference(
    vocab: int, cells: int, test: int, tmp_path: Path
) -> None:
    """What has been seen once is right by chance where it was seen."""
    random = np.random.default_rng(0)
    splits = {}
    for split, n in (("train", 500), ("test", test)):
        inputs = random.integers(1, vocab, (n, cells))
        splits[split] = {"inputs": inputs, "labels": inputs[:, ::-1].copy()}
    write_folder(Puzzles(splits, vocab=vocab), tmp_path)
    for split in splits:  # more tokens than a byte has
        for name in ("inputs", "labels"):
            np.save(tmp_path / split / f"all__{name}.npy", splits[split][name].astype(np.uint16))
    for name in ("labels-shuffled", "splits-differ"):
        assert found(tmp_path, name).verdict not in (Verdict.WARN, Verdict.FAIL)


def test_examples_lie_evenly_where_groups_are_few(tmp_path: Path) -> None:
    """The first of each of 800 groups, and 1,200 others; the cells say which example it is."""
    n = 4000
    inputs = np.stack([np.arange(n) // 200, np.arange(n) % 200], 1) + 1
    fields = {"inputs": inputs, "labels": inputs, "groups": np.arange(n) // 5, "identifiers": np.zeros(n, np.int64)}
    write_folder(Puzzles({"train": fields, "test": fields}, vocab=256), tmp_path)
    read = examples_of(open_puzzles(tmp_path), "train")
    numbers = (read.inputs[:, 0] - 1) * 200 + read.inputs[:, 1] - 1
    assert (len(np.unique(numbers)), read.groups, read.part) == (2000, 800, 1.0)
    assert np.histogram(numbers, 10, (0, n))[0].min() > 150


def test_few_matches_among_many_groups_are_no_copies() -> None:
    other, train = np.arange(2000, dtype=np.uint64), np.arange(5000, 7000, dtype=np.uint64)
    for matches, share in ((1, 0.0), (2, 0.0), (4, 4 / 2000), (5, 1.0), (2000, 1.0)):
        train[:matches] = other[:matches]
        assert shared_forms(train, other, 2000, 0.001)[0] == pytest.approx(share)


def test_grids_so_simple_that_there_are_few_are_a_possible_copy(tmp_path: Path) -> None:
    """Two marks in a grid: nearly all are turned ones of another, in training as well."""
    random = np.random.default_rng(0)
    grids = np.ones((200, SIDE * SIDE), np.int64)
    for grid in grids:
        grid[random.choice(SIDE * SIDE, 2, replace=False)] = 2
    grids = np.unique(grids, axis=0)
    random.shuffle(grids)
    inputs = {"train": grids[:100], "test": grids[100:]}
    said = found(write(tmp_path / "folder", inputs, inputs, 4), "duplicate-across-splits")
    assert (said.verdict, said.sure) == (Verdict.WARN, "possible")


def test_sudokus_that_are_nearly_empty_are_not_searched_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these has millions of solutions, and needs no solver."""
    asked = np.zeros((200, 81), np.int64)
    asked[100:, :9] = np.arange(1, 10)
    monkeypatch.setattr(puzzle_facts, "solve", None)
    assert several_solutions(asked, GEOMETRIES[9]) == 1.0


@pytest.mark.parametrize(("unknown", "expected"), [(0, Verdict.OK), (5, Verdict.WARN), (40, Verdict.FAIL)])
def test_identifiers_that_training_never_shows(unknown: int, expected: Verdict, tmp_path: Path) -> None:
    folder = changed(tmp_path, lambda made: None)
    path = folder / "test" / "all__puzzle_identifiers.npy"
    identifiers = np.load(path)
    identifiers[:unknown] = 1
    np.save(path, identifiers)
    for split in ("train", "test"):
        about = folder / split / "dataset.json"
        about.write_text(json.dumps(json.loads(about.read_text()) | {"num_puzzle_identifiers": 2}))
    (folder / "identifiers.json").write_text(json.dumps(["<blank>", "other"]))
    said = found(folder, "identifiers-unknown")
    assert said.verdict is expected
    assert said.numbers["unknown"] == pytest.approx(unknown / 160)
    assert found(folder, "identifiers-unknown", puzzle_emb_ndim=0).verdict is Verdict.OK
