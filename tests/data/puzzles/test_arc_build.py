"""The ARC folder: what goes into which split, and that nothing but the seed decides how it looks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_tasks import task, write, write_subset

from trm_core.config.schema import PuzzleBuildConfig
from trm_core.data.puzzles.arc_copies import inverse_of
from trm_core.data.puzzles.arc_held_out import read_held_out
from trm_core.data.puzzles.arc_tokens import crops
from trm_core.data.puzzles.build.arc import build_arc
from trm_core.data.puzzles.build.report import BuiltPuzzles
from trm_core.data.puzzles.reader import open_puzzles
from trm_core.errors import ConfigError, DataError, StoppedEarly, UsageError

Build = Callable[..., BuiltPuzzles]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def run(*sources: Path, name: str = "out", **settings: Any) -> BuiltPuzzles:
        return build_arc(list(sources), tmp_path / name, PuzzleBuildConfig(**settings), lambda *_: None, lambda _: None)

    return run


def examples(folder: Path, split: str) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(identifier's name, input, label) of every example, read the way the public code does."""
    names = json.loads((folder / "identifiers.json").read_text())
    read = {
        field: np.load(folder / split / f"all__{field}.npy")
        for field in ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")
    }
    assert read["inputs"].dtype == read["labels"].dtype == np.uint8
    assert read["group_indices"][-1] == len(read["puzzle_identifiers"]) == len(read["puzzle_indices"]) - 1
    owners = np.repeat(read["puzzle_identifiers"], np.diff(read["puzzle_indices"]))
    return [(names[owner], *both) for owner, *both in zip(owners, read["inputs"], read["labels"], strict=True)]


def grid_of(tokens: np.ndarray) -> np.ndarray:
    """The grid, wherever it was moved to."""
    square = tokens.reshape(30, 30)
    cells = np.argwhere(square >= 2)
    (top, left), (bottom, right) = cells.min(axis=0), cells.max(axis=0) + 1
    return square[top:bottom, left:right] - 2


def shown(folder: Path, split: str) -> dict[str, list[tuple[Any, Any]]]:
    """Pairs of grids by task, turned back to how the task has them."""
    found: dict[str, list[tuple[Any, Any]]] = {}
    for name, inputs, labels in examples(folder, split):
        own, undo = inverse_of(name)
        found.setdefault(own, []).append((undo(grid_of(inputs)).tolist(), undo(grid_of(labels)).tolist()))
    return found


def pairs(document: dict[str, Any], *parts: str) -> list[tuple[Any, Any]]:
    return [(each["input"], each["output"]) for part in parts for each in document[part]]


def test_every_pair_is_where_it_belongs(build: Build, tmp_path: Path) -> None:
    train = {f"t{number}": task(number, test=2) for number in range(3)}
    evaluation = {f"e{number}": task(10 + number, test=2) for number in range(2)}
    write_subset(tmp_path / "src", "training", train)
    write_subset(tmp_path / "src", "evaluation", evaluation)
    built = build(tmp_path / "src", augmentations=5)
    assert built.notes == ()
    assert set(open_puzzles(built.path).rows) == {"train", "test"}
    learned, asked = shown(built.path, "train"), shown(built.path, "test")
    for name, document in train.items():
        assert sorted(learned[name]) == sorted(6 * pairs(document, "train", "test"))
    for name, document in evaluation.items():
        assert sorted(learned[name]) == sorted(6 * pairs(document, "train"))
        assert sorted(asked[name]) == sorted(6 * pairs(document, "test"))
    assert set(asked) == set(evaluation)
    names = json.loads((built.path / "identifiers.json").read_text())
    assert names[0] == "<blank>"
    assert len(set(names)) == len(names) == 1 + 5 * 6
    assert {name for name, *_ in examples(built.path, "test")} <= {name for name, *_ in examples(built.path, "train")}
    assert all(crops(inputs[None])[0] is not None for _, inputs, _ in examples(built.path, "test"))
    assert {held.name: pairs(evaluation[held.name], "test") for held in read_held_out(built.path)} == {
        held.name: [(pair.input.tolist(), pair.output.tolist()) for pair in held.test if pair.output is not None]
        for held in read_held_out(built.path)
    }
    counts = built.splits
    assert (counts["train"].groups, counts["train"].puzzles, counts["train"].examples) == (5, 30, 3 * 30 + 2 * 18)
    metadata = json.loads((built.path / "test" / "dataset.json").read_text())
    assert (metadata["vocab_size"], metadata["seq_len"], metadata["sets"]) == (12, 900, ["all"])
    assert metadata["num_puzzle_identifiers"] == len(names)


def test_the_seed_alone_decides(build: Build, tmp_path: Path) -> None:
    tasks = {f"t{number}": task(number) for number in range(2)}
    source = write_subset(tmp_path, "training", tasks)
    contents = {}
    for name, workers, seed in (("one", 0, 7), ("two", 2, 7), ("three", 0, 8)):
        folder = build(source, name=name, augmentations=130, workers=workers, seed=seed).path
        contents[name] = {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*")
            if path.suffix in (".npy", ".json")
        }
    assert contents["one"] == contents["two"]
    assert contents["one"] != contents["three"]
    del tasks["t0"]  # the others do not notice
    alone = build(write_subset(tmp_path / "b", "training", tasks), name="four", augmentations=130, seed=7)
    of_first = [row for row in examples(tmp_path / "one", "train") if not row[0].startswith("t0")]
    for one, other in zip(of_first, examples(alone.path, "train"), strict=True):
        assert one[0] == other[0]
        assert np.array_equal(one[1], other[1])


def test_solutions_among_the_sources_do_no_harm(build: Build, tmp_path: Path) -> None:
    write_subset(tmp_path / "all" / "src", "training", {"t": task(0)})
    write_subset(tmp_path / "all" / "src", "evaluation", {"e": task(1)})
    built = build(*sorted((tmp_path / "all" / "src").glob("*.json")))
    assert (built.splits["train"].groups, built.splits["test"].groups) == (2, 1)
    again = build(tmp_path / "all", name="again")  # the folder above
    assert again.splits == built.splits
    alone = build(tmp_path / "all" / "src" / "made_training_solutions.json", name="alone")
    assert shown(alone.path, "test") == {"t": pairs(task(0), "test")}


def test_folders_of_tasks_are_subsets_by_their_name(build: Build, tmp_path: Path) -> None:
    for number, subset in enumerate(("concept", "training")):
        write(tmp_path / "data" / subset / f"{subset}{number}.json", task(number))
    by_default = build(tmp_path / "data", name="a")
    assert set(shown(by_default.path, "test")) == {"training1"}
    chosen = build(tmp_path / "data" / "training", tmp_path / "data" / "concept", name="b", test_subset="concept")
    assert set(shown(chosen.path, "test")) == {"concept0"}
    with pytest.raises(ConfigError, match="test_subset=evaluation"):
        build(tmp_path / "data", name="c", test_subset="evaluation")


def test_missing_solutions_are_ignored_and_said(build: Build, tmp_path: Path) -> None:
    write_subset(tmp_path / "src", "training", {"t": task(0)}, solved=False)
    write_subset(tmp_path / "src", "evaluation", {"e": task(1, test=2)}, solved=False)
    built = build(tmp_path / "src", augmentations=3)
    assert all(not labels.any() and inputs.any() for _, inputs, labels in examples(built.path, "test"))
    assert built.splits["test"].examples == 8
    assert built.splits["train"].examples == 2 * 4 * 3
    assert [note.split()[0] for note in built.notes] == ["2", "1"]
    assert [pair.output for pair in read_held_out(built.path)[0].test] == [None, None]


def test_a_task_in_two_subsets_is_held_out_whole(build: Build, tmp_path: Path) -> None:
    same = task(0)
    write_subset(tmp_path / "src", "training", {"same": same, "other": task(1)})
    write_subset(tmp_path / "src", "evaluation", {"same": same}, solved=False)
    built = build(tmp_path / "src")
    assert shown(built.path, "train")["same"] == pairs(same, "train")
    assert shown(built.path, "test") == {"same": pairs(same, "test")}
    write_subset(tmp_path / "src", "evaluation", {"same": task(2)})
    with pytest.raises(DataError, match=r"task same: differs from task same of .*evaluation"):
        build(tmp_path / "src", name="again")


def test_some_training_tasks_can_be_drawn(build: Build, tmp_path: Path) -> None:
    write_subset(tmp_path / "src", "training", {f"t{number}": task(number) for number in range(6)})
    write_subset(tmp_path / "src", "evaluation", {"e": task(9)})
    assert build(tmp_path / "src", subsample=2).splits["train"].groups == 3


@pytest.mark.parametrize("stage", ["generate", "write"])
def test_a_build_can_be_stopped_and_leaves_nothing(tmp_path: Path, stage: str) -> None:
    def stop(at: str, done: int, _: int) -> None:
        if at == stage and done:
            raise StoppedEarly("stopped")

    source = write_subset(tmp_path / "src", "training", {"t": task(0)})
    with pytest.raises(StoppedEarly):
        build_arc([source], tmp_path / "out", PuzzleBuildConfig(), stop, lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda one: one["train"][1]["input"].append([1]), "task t, train pair 1, input: is not rectangular"),
        (lambda one: one["train"][0].update(output=[[10]]), "task t, train pair 0, output: holds 10"),
        (lambda one: one["train"][0].update(output=[[True]]), "task t, train pair 0, output: holds True"),
        (lambda one: one["test"][0].update(input=[[1] * 31]), "task t, test pair 0, input: is 1 x 31"),
        (lambda one: one["train"][2].pop("output"), "task t, train pair 2: has no output"),
        (lambda one: one["train"][2].pop("input"), "task t, train pair 2: has no input"),
        (lambda one: one.pop("test"), "task t: has no test pairs"),
        (lambda one: one.update(train=[]), "task t: has no train pairs"),
        (lambda one: one.update(train=3), "task t: has no list of train pairs"),
    ],
)
def test_what_is_no_task_is_refused_by_name(
    build: Build, tmp_path: Path, damage: Callable[[dict[str, Any]], Any], message: str
) -> None:
    bad = task(0)
    damage(bad)
    with pytest.raises(DataError, match=f"t.json: {message}"):
        build(write(tmp_path / "training" / "t.json", bad).parent)
    assert not (tmp_path / "out").exists()


def test_sources_that_hold_nothing_are_refused(build: Build, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no ARC tasks"):
        build(tmp_path / "empty")
    with pytest.raises(DataError, match="does not exist"):
        build(tmp_path / "nothing.json")
    with pytest.raises(DataError, match="holds no ARC tasks"):
        build(write(tmp_path / "made_training_challenges.json", {}))
    named = write(tmp_path / "made_evaluation_challenges.json", {"a|||t1|||0123456789": task(0)})
    with pytest.raises(DataError, match="cannot be the name of a puzzle"):
        build(named)
    full = write(tmp_path / "out" / "something", {})
    with pytest.raises(UsageError, match="exists already"):
        build(write_subset(tmp_path, "concept", {"t": task(0)}))
    assert full.exists()


@pytest.mark.skipif("TRM_TEST_DATA" not in os.environ, reason="TRM_TEST_DATA names no folder with arc/")
def test_the_real_arc(build: Build) -> None:
    built = build(Path(os.environ["TRM_TEST_DATA"]) / "arc", augmentations=1)
    # 40853293 of the training tasks is a copy of the held-out 070dd51e: 2 pairs and 1.
    assert built.notes[0].startswith("1 training tasks are copies of held-out ones (40853293 of 070dd51e")
    assert (built.splits["train"].groups, built.splits["test"].groups) == (959, 400)
    assert built.splits["train"].examples == 2 * (1302 + 416 + 1363 + 427 + 480 - 3)
    assert built.splits["test"].examples == 2 * 419
    for held, (name, found) in zip(read_held_out(built.path), shown(built.path, "test").items(), strict=True):
        assert held.name == name
        assert sorted(found) == sorted(
            2 * [(pair.input.tolist(), pair.output.tolist()) for pair in held.test if pair.output is not None]
        )


def test_copies_of_held_out_tasks_are_not_trained_on(build: Build, tmp_path: Path) -> None:
    """As it is, or turned, recoloured and with its pairs in another order; other tasks stay."""
    held = task(10, test=2)
    turned = [{side: [[(7 * c) % 10 for c in row] for row in zip(*pair[side][::-1], strict=True)] for side in pair}
              for pair in held["train"] + held["test"]]  # fmt: skip
    recoloured = {"train": [*turned[2:], *turned[:1]], "test": turned[1:2]}
    write_subset(tmp_path / "src", "training", {"same": held, "turned": recoloured, "other": task(3, test=1)})
    write_subset(tmp_path / "src", "evaluation", {"e": held})
    built = build(tmp_path / "src", augmentations=2)
    assert set(shown(built.path, "train")) == {"other", "e"}
    assert any("2 training tasks are copies of held-out ones (same of e, ...)" in note for note in built.notes)
