"""The checks over data alone: all of the group are there, every held-out split is judged, what was counted is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny_puzzles import ARCH, write_puzzles

from trm_core.data.inspect import inspect_dataset
from trm_core.data.puzzles.inspect import inspect_puzzles
from trm_core.data.store import CapsuleWriter
from trm_core.diagnose.check import Verdict
from trm_core.diagnose.checks.puzzle_splits import IDENTIFIERS
from trm_core.diagnose.copies import Copies, Labelled, near_copies, shared_copies
from trm_core.diagnose.data_facts import DataFacts
from trm_core.diagnose.diagnose import look
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.of_data import checks_of_capsules, checks_of_puzzles
from trm_core.diagnose.puzzle_facts import facts_of
from trm_core.diagnose.registry import OF_DATA, of_group


def silent(stage: str, done: int, total: int) -> None:
    """Nobody watches."""


def write(path: Path, rows: dict[str, int], seed: int = 0) -> Path:
    """Classes around centres, seen coarsely in the sketches. Of the test split everything is larger."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((3, 4, 5))
    with CapsuleWriter(path, num_capsules=4, dim=5, num_children=2, dtype="float32") as writer:
        for split, count in rows.items():
            labels = random.integers(0, 3, count)
            children = centres[labels][:, :, None] + random.standard_normal((count, 4, 2, 5))
            children *= 2 if split == "test" else 1
            sketches = children.mean(2) + random.standard_normal((count, 4, 5))
            writer.append(split, {"sketches": sketches, "children": children, "labels": labels})
        writer.close({"kind": "arrays", "num_classes": 3, "task": "classes"})
    return path


OF_PUZZLES = {"identifiers-unknown", "answers-missing", "answers-copied", "answers-contradict"}


def test_the_whole_group_needs_data_alone() -> None:
    assert set(of_group("data")) == set(OF_DATA)


def test_another_held_out_split_is_seen_as_if_it_were_the_first(tmp_path: Path) -> None:
    """What is kept from the look before is of training alone."""
    path = write(tmp_path / "a.h5", {"train": 300, "validation": 120, "test": 100})
    first = DataFacts(path)
    before = [look(check, Evidence(data=first)).finding for check in OF_DATA]
    beside = [look(check, Evidence(data=first.beside("test"))).finding for check in OF_DATA]
    assert beside == [look(check, Evidence(data=DataFacts(path, "test"))).finding for check in OF_DATA]
    assert before == [look(check, Evidence(data=DataFacts(path, "validation"))).finding for check in OF_DATA]
    assert before != beside
    known = {name for name, value in vars(DataFacts).items() if hasattr(value, "attrname")}
    kept = first.beside("test").__dict__.keys() & known
    assert kept == {"detail", "told", "placed", "placed_by_stretch", "blank", "filler", "probe", "leak"}


def test_the_worst_split_speaks(tmp_path: Path) -> None:
    inspection = inspect_dataset(write(tmp_path / "a.h5", {"train": 300, "validation": 120, "test": 100}))
    found = {one.check.id: one.finding for one in checks_of_capsules(inspection, silent)}
    assert found.keys() == {check.id for check in OF_DATA} - OF_PUZZLES | {"answers-missing"}
    assert found["splits-differ"].verdict is Verdict.FAIL
    assert "the test split" in found["splits-differ"].evidence
    assert found["labels-shuffled"].verdict is Verdict.OK


@pytest.mark.parametrize("rows", [{"train": 40}, {"validation": 40}, {"train": 6, "test": 1}])
def test_files_with_few_splits_and_rows(tmp_path: Path, rows: dict[str, int]) -> None:
    inspection = inspect_dataset(write(tmp_path / "a.h5", rows))
    found = checks_of_capsules(inspection, silent)
    assert not [one for one in found if one.finding.verdict is Verdict.FAIL]


def test_what_all_rows_have_shown_is_not_guessed_from_some(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", {"train": 60, "validation": 50})
    assert DataFacts(path).twins.equal == 0.0
    assert DataFacts(path, across={"train/validation": 5}).twins.equal == pytest.approx(0.1)
    folder = write_puzzles(tmp_path / "puzzles", groups=100)
    inspection = inspect_puzzles(folder)
    (copies,) = (one for one in checks_of_puzzles(inspection, silent) if one.check.id == "duplicate-across-splits")
    assert copies.finding.numbers["share"] == inspection.shared / inspection.splits["test"].examples
    assert "surveys" not in inspection.to_dict()


@pytest.mark.parametrize(
    ("name", "value"), [("labels", -5), ("labels", 2**40), ("sketches", np.nan), ("children", 1e30)]
)
def test_damaged_values_are_no_evidence(tmp_path: Path, name: str, value: float) -> None:
    """Nor do they end in an error: what is damaged is told by who reads everything."""
    import h5py

    path = write(tmp_path / "a.h5", {"train": 200, "validation": 100})
    with h5py.File(path, "r+") as file:
        file[f"train/{name}"][3] = value
    found = {check.id: look(check, Evidence(data=DataFacts(path))).finding for check in OF_DATA}
    assert found["labels-shuffled"].verdict is Verdict.UNKNOWN
    assert f"train/{name} holds" in found["labels-shuffled"].evidence


def test_identifiers_matter_to_who_learns_them(tmp_path: Path) -> None:
    """A model may do without, so what only data tell is a warning."""
    folder = write_puzzles(tmp_path / "puzzles", identifiers=4)
    path = folder / "test" / "all__puzzle_identifiers.npy"
    np.save(folder / "train" / "all__puzzle_identifiers.npy", np.load(folder / "train" / path.name) * 0)
    facts = facts_of(folder)
    without = tiny.make_config(arch={**ARCH, "puzzle_emb_ndim": 0})
    for config, verdict in (
        (None, Verdict.WARN),
        (tiny.make_config(arch=ARCH), Verdict.FAIL),
        (without, Verdict.OK),
    ):
        assert look(IDENTIFIERS, Evidence(config, data=facts)).finding.verdict is verdict


def test_a_few_neighbours_are_no_copies() -> None:
    """Small tables, in which two or three held-out rows lie near to training rows, as these do to each other."""
    random = np.random.default_rng(0)
    train = random.integers(0, 2**60, (80, 4)).astype(np.uint64)
    train[:20, :2] = train[20:40, :2]
    held_out = random.integers(0, 2**60, (15, 4)).astype(np.uint64)
    for shared, expected in ((2, False), (4, False), (6, True)):
        held_out[:shared, :2] = train[60 : 60 + shared, :2]
        assert shared_copies(train, held_out).are_copies is expected
    rows = random.standard_normal((80, 6))
    apart = random.standard_normal((15, 6))
    for close, expected in ((2, False), (3, True)):
        apart[:close] = rows[:close] + 1e-3
        assert near_copies(rows, apart).are_copies is expected


def split_rows(rows: np.ndarray, labels: np.ndarray) -> Copies:
    order = np.random.default_rng(9).permutation(len(rows))
    train, held_out = order[len(rows) // 5 :], order[: len(rows) // 5]
    return near_copies(rows[train], rows[held_out], Labelled(labels[train], labels[held_out]))


@pytest.mark.parametrize("task", ["squares", "signs", "tight classes"])
@pytest.mark.parametrize("rows", [500, 2000])
def test_neighbours_of_a_small_table_are_no_copies(task: str, rows: int) -> None:
    """Of two or three columns, with labels that depend on them: near rows agree more often than those further away."""
    random = np.random.default_rng(0)
    table = random.uniform(-1, 1, (rows, 2))
    cells = np.floor(2 * table + 2).astype(np.int64)
    labels = cells[:, 0] + 4 * cells[:, 1]
    if task == "signs":
        labels = (table[:, 0] * table[:, 1] > 0).astype(np.int64)
    if task == "tight classes":
        labels = random.integers(0, 8, rows)
        table = random.standard_normal((8, 3))[labels] + 0.03 * random.standard_normal((rows, 3))
    copies = split_rows(table, labels)
    assert copies.near > 0.8
    assert not copies.are_copies


@pytest.mark.parametrize("width", [5, 20])
def test_versions_of_a_sample_in_both_splits_are_copies(width: int) -> None:
    random = np.random.default_rng(0)
    originals = random.standard_normal((400, width))
    labels = (originals[:, 0] + originals[:, 1] > 0).astype(np.int64)
    versions = np.repeat(originals, 3, axis=0) + 0.02 * random.standard_normal((1200, width))
    assert split_rows(versions, np.repeat(labels, 3)).are_copies
