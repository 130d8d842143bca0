"""ARC grids: reading tasks in all their forms, cells over both grids, and what is not a grid."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_file import Build
from small_sources import write_arc

from trm_core.data.build.arc import COLOURS, GridPair
from trm_core.data.build.augment import GridCopies
from trm_core.data.build.encode_arc import FEATURES, ArcEncoder
from trm_core.errors import ConfigError, DataError


def test_the_kaggle_pair_gives_every_pair_with_its_solution(build: Build, tmp_path: Path) -> None:
    built = build(write_arc(tmp_path / "arc"), num_concepts=16)
    assert built.report.kind == "arc"
    assert sum(built.report.counts.values()) == 36
    assert built.all("mask").all()
    assert (built.report.task, built.report.num_capsules) == ("concepts", 18)
    (tmp_path / "arc_solutions.json").unlink()
    alone = build(tmp_path / "arc_challenges.json", name="alone.h5", num_concepts=16)
    assert (~alone.all("mask")).sum() == 12 * 9
    assert any("12 test pairs have no solution" in message for message in alone.messages)


def test_the_pairs_of_a_task_share_a_split_and_concepts_can_be_labels(build: Build, tmp_path: Path) -> None:
    built = build(write_arc(tmp_path / "arc", tasks=20), label="concept", validation=0.2, test=0.2)
    assert built.manifest["class_names"] == ["Copy", "Count"]
    for fields in built.splits.values():
        tasks, counts = np.unique(fields["ids"] // 3, return_counts=True)
        assert (counts == 3).all(), tasks
    assert set(built.splits) == {"train", "validation", "test"}


def test_pairs_that_look_the_same_once_encoded_take_their_task_along(build: Build, tmp_path: Path) -> None:
    """One coarse cell of a grid keeps the shares of its colours, in which pairs of several tasks agree."""
    rng = np.random.default_rng(0)

    def pair() -> dict[str, Any]:
        return {
            side: rng.permutation([*[0] * 7, *rng.integers(0, 10, 2)]).reshape(3, 3).tolist()
            for side in ("input", "output")
        }

    source = tmp_path / "tasks.json"
    source.write_text(json.dumps({f"t{n}": {"train": [pair(), pair()], "test": [pair()]} for n in range(60)}))
    built = build(source, num_capsules=2, num_children=1, num_concepts=8, validation=0.2, test=0.2)
    assert any("once encoded" in message for message in built.messages)
    for fields in built.splits.values():
        assert (np.unique(fields["ids"] // 3, return_counts=True)[1] == 3).all()


def test_children_are_colour_shares_of_their_sub_cells() -> None:
    grid = np.arange(16, dtype=np.int8).reshape(4, 4) % 10
    encoder = ArcEncoder(8, 4, FEATURES)
    children = encoder.encode([GridPair(grid, None)]).children
    assert children is not None
    first = children[0, :4]  # four cells of four single pixels
    assert first[..., :11].sum(axis=-1).tolist() == [[1.0] * 4] * 4
    assert first[1, 2].argmax() == grid[1, 2]
    assert np.allclose(first[..., 11:], 4 / 30)
    assert not children[0, 4:].any()
    # 3 x 3 is padded to 4 x 4: the last row and column are outside.
    padded = encoder.encode([GridPair(grid[:3, :3], None)]).children
    assert padded is not None
    assert padded[0, 3, 3, 10] == 1.0


def test_folders_and_single_tasks(build: Build, tmp_path: Path) -> None:
    tasks = json.loads(write_arc(tmp_path / "arc").read_text())
    (tmp_path / "tasks").mkdir()
    for name, task in tasks.items():
        (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps(task))
    assert sum(build(tmp_path / "tasks", num_concepts=8).report.counts.values()) == 36


def test_a_folder_of_combined_files(build: Build, tmp_path: Path) -> None:
    """As `trm build-puzzles arc` takes it: challenges with their solutions."""
    (tmp_path / "arc").mkdir()
    for name in ("a", "b"):
        write_arc(tmp_path / "arc" / name, tasks=6, seed=ord(name))
    built = build(tmp_path / "arc", num_concepts=8)
    assert sum(built.report.counts.values()) == 36
    assert built.all("mask").all()  # the solutions are found
    assert "folder of 2 combined files of ARC tasks" in built.report.reason


BAD: list[tuple[Any, str]] = [
    ([[1, 2], [3]], "is not rectangular"),
    ([[1, 10]], "holds 10, colours are 0 to 9"),
    ([[1, -1]], "holds -1"),
    ([[1, "2"]], "holds '2'"),
    ([[True]], "holds True"),
    ([], "is not a grid"),
    ([[0] * 31], "more than 30 x 30"),
]


@pytest.mark.parametrize(("grid", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_grids_are_named_by_task(build: Build, tmp_path: Path, grid: Any, message: str) -> None:
    source = tmp_path / "x.json"
    source.write_text(json.dumps({"task7": {"train": [{"input": grid, "output": [[1]]}], "test": []}}))
    with pytest.raises(DataError, match=f"task task7, train pair 0, input.*{message}"):
        build(source)


def test_settings_that_do_not_fit(build: Build, tmp_path: Path) -> None:
    source = write_arc(tmp_path / "arc")
    with pytest.raises(ConfigError, match="even"):
        build(source, num_capsules=9)
    with pytest.raises(ConfigError, match="not known for ARC"):
        build(source, label="colour")
    (tmp_path / "not.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="not of ARC tasks"):
        build(tmp_path / "not.json")
    (tmp_path / "broken.json").write_text('{"a": \n [1,,2]}')
    with pytest.raises(DataError, match=r"broken.json:2: is not JSON"):
        build(tmp_path / "broken.json")
    (tmp_path / "twice.json").write_text(
        '{"task": {"train": [{"input": [[1]], "output": [[2]], "input": [[3]]}], "test": []}}'
    )
    with pytest.raises(DataError, match=r"twice.json: an object has the key 'input' twice"):
        build(tmp_path / "twice.json")


def test_a_byte_order_mark_is_no_part_of_a_task(build: Build, tmp_path: Path) -> None:
    file = write_arc(tmp_path / "arc")
    file.write_text("\ufeff" + file.read_text())
    assert build(file, num_concepts=16).report.kind == "arc"


@pytest.mark.skipif("TRM_TEST_DATA" not in os.environ, reason="TRM_TEST_DATA names no folder with arc/")
def test_the_real_concept_arc(build: Build) -> None:
    source = Path(os.environ["TRM_TEST_DATA"]) / "arc" / "arc-agi_concept_challenges.json"
    built = build(source, label="concept")
    assert len(built.manifest["class_names"]) == 16
    assert "TopBottom3D" in built.manifest["class_names"]


def test_copies_of_grids_keep_the_task_and_are_for_training_alone(build: Build, tmp_path: Path) -> None:
    source = write_arc(tmp_path / "arc", tasks=20)
    plain, more = (build(source, name=f"{n}.h5", augment_grids=n, num_concepts=16) for n in (0, 3))
    assert len(more.splits["train"]["ids"]) > 2 * len(plain.splits["train"]["ids"])
    for split in ("validation", "test"):
        assert np.array_equal(plain.splits[split]["children"], more.splits[split]["children"])


def test_a_copy_is_one_symmetry_of_both_grids() -> None:
    random = np.random.default_rng(0)
    left, right = (random.integers(0, COLOURS, (4, 6)).astype(np.int8) for _ in range(2))
    original, *copies = GridCopies(12, seed=1).variants(GridPair(left, right))
    assert original.input is left
    assert len({copy.input.tobytes() for copy in copies}) > 8
    for copy in copies:
        assert copy.output is not None
        pairs = set(zip(left.ravel().tolist(), right.ravel().tolist(), strict=True))
        moved = set(zip(copy.input.ravel().tolist(), copy.output.ravel().tolist(), strict=True))
        assert len(pairs) == len(moved), "the same cells and colours still stand for each other"
        assert (copy.input == 0).sum() == (left == 0).sum(), "the background stays"
        assert sorted(np.bincount(copy.input.ravel(), minlength=COLOURS)) == sorted(
            np.bincount(left.ravel(), minlength=COLOURS)
        )
    again = GridCopies(12, seed=1).variants(GridPair(left, right))
    assert all(np.array_equal(a.input, b.input) for a, b in zip(copies, again[1:], strict=True))
    assert GridCopies(2, seed=1).variants(GridPair(left, None))[1].output is None
