"""The order of training puzzles: every group once in an epoch, the same rows however they are taken, exact resume."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_puzzles import SIZE, write_puzzles

from trm_core.data.dataset import batches_of, open_stream
from trm_core.data.puzzles.checked_files import PuzzleSet
from trm_core.data.puzzles.layout import Metadata
from trm_core.data.puzzles.reader import PuzzleData, open_puzzles
from trm_core.data.puzzles.stream import PuzzleStream
from trm_core.data.store import open_capsules
from trm_core.errors import CheckpointError, ConfigError, DataError

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Groups = list[list[int]]  # of each group the examples of each of its puzzles

# One folder may have several sets.
SETS = st.lists(
    st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=5), min_size=1, max_size=2
)
FOLDERS = st.lists(SETS, min_size=1, max_size=3)


def in_memory(sets: list[Groups], number: int) -> PuzzleData:
    """A folder whose example e has e in its inputs (folder `number` counts from 1000 * number)."""
    parts, begin = [], 1000 * number
    for index, groups in enumerate(sets):
        sizes = [size for group in groups for size in group]
        n = sum(sizes)
        rows = np.arange(begin, begin + n)[:, None] * np.ones(SIZE, np.int64)
        begin += n
        parts.append(
            PuzzleSet(
                name=f"set{index}",
                inputs=rows,
                labels=-rows,
                puzzle_identifiers=np.arange(len(sizes)),
                puzzle_indices=np.cumsum([0, *sizes]),
                group_indices=np.cumsum([0, *(len(group) for group in groups)]),
            )
        )
    about = Metadata(
        pad_id=0, ignore_label_id=None, blank_identifier_id=0, vocab_size=5000, seq_len=SIZE,
        num_puzzle_identifiers=50, total_groups=0, mean_puzzle_examples=1.0, total_puzzles=0,
        sets=[part.name for part in parts],
    )  # fmt: skip
    return PuzzleData(Path(f"folder{number}"), {"train": about}, {"train": parts}, None, None)


@dataclass(frozen=True)
class Visit:
    """A puzzle, in a list of all of them."""

    group: int
    examples: tuple[int, ...]
    identifier: int


def puzzles_of(folders: list[list[Groups]]) -> list[Visit]:
    found, group = [], 0
    for number, sets in enumerate(folders):
        example = 1000 * number
        for groups in sets:
            identifier = 0
            for sizes in groups:
                for size in sizes:
                    found.append(Visit(group, tuple(range(example, example + size)), identifier))
                    example += size
                    identifier += 1
                group += 1
    return found


def make_stream(folders: list[list[Groups]], seed: int = 3) -> PuzzleStream:
    return PuzzleStream([in_memory(sets, number) for number, sets in enumerate(folders)], seed=seed)


def examples(stream: PuzzleStream, count: int, before: int = 0, after: int = 0) -> list[tuple[int, int, int]]:
    """(example, label, identifier) of each row."""
    batch = stream.take(count, before, after)
    assert len(batch) == count
    assert batch.puzzles is not None
    return list(zip(batch.sketches[:, 0].tolist(), batch.labels[:, 0].tolist(), batch.puzzles.tolist(), strict=True))


@FEW
@given(FOLDERS, st.integers(0, 2**32 - 1))
def test_an_epoch_visits_every_group_once_with_a_whole_puzzle_of_it(folders: list[list[Groups]], seed: int) -> None:
    stream, puzzles = make_stream(folders, seed), puzzles_of(folders)
    owner = {example: puzzle for puzzle in puzzles for example in puzzle.examples}
    groups = {puzzle.group for puzzle in puzzles}
    for epoch in range(3):
        rows = examples(stream, 1)  # into the epoch, whose length is known only then
        rows += examples(stream, stream.rows_per_epoch - 1)
        assert stream.epoch == epoch + 1
        seen = [owner[example] for example, _, _ in rows]
        assert {puzzle.group for puzzle in seen} == groups
        assert len({puzzle.examples for puzzle in seen}) == len(groups), "one puzzle of each group"
        assert Counter(example for example, _, _ in rows) == Counter(e for p in set(seen) for e in p.examples)
        for (example, label, identifier), puzzle in zip(rows, seen, strict=True):
            assert (label, identifier) == (-example, puzzle.identifier)
        # Rows of one puzzle follow each other.
        assert sum(a != b for a, b in pairwise(seen)) == len(groups) - 1


@FEW
@given(FOLDERS, st.integers(1, 3), st.lists(st.tuples(*[st.integers(0, 9)] * 3), max_size=8))
def test_however_rows_are_taken_they_are_the_same(
    folders: list[list[Groups]], world: int, takes: list[tuple[int, ...]]
) -> None:
    """In one call or many, by one process or several that each take a part of every call."""
    streams = [make_stream(folders) for _ in range(world)]
    found: list[tuple[int, int, int]] = []
    for wanted in takes:
        for rank, stream in enumerate(streams):
            found += examples(stream, wanted[rank], sum(wanted[:rank]), sum(wanted[rank + 1 : world]))
        assert len({(stream.epoch, stream.rows_per_epoch) for stream in streams}) == 1
    assert found == examples(make_stream(folders), len(found))


@FEW
@given(FOLDERS, st.integers(0, 70), st.integers(0, 9))
def test_resumes_to_the_row(folders: list[list[Groups]], taken: int, before: int) -> None:
    stream, again = make_stream(folders), make_stream(folders)
    stream.take(taken)
    saved = json.loads(json.dumps(stream.state_dict()))
    again.take(before)
    again.load_state_dict(saved)
    assert again.epoch == stream.epoch
    assert examples(again, 40) == examples(stream, 40)


def test_every_puzzle_of_a_group_and_every_order_is_drawn() -> None:
    """Each puzzle about as often as the others, and no group always at the same place."""
    stream = make_stream([[[[1, 1, 1], [1]]]])
    rows = [examples(stream, 2) for _ in range(600)]
    counts = Counter(example for pair in rows for example, _, _ in pair if example < 3)
    assert all(160 < counts[example] < 240 for example in range(3))
    assert 240 < sum(pair[0][0] == 3 for pair in rows) < 360
    orders = Counter(tuple(e for e, _, _ in examples(one, 3)) for one in [make_stream([[[[3]]]])] for _ in range(600))
    assert len(orders) == 6
    assert min(orders.values()) > 60


def test_another_seed_is_another_order() -> None:
    folders = [[[[2, 2]] * 8]]
    assert examples(make_stream(folders, 0), 16) != examples(make_stream(folders, 1), 16)


def refused(stream: PuzzleStream, state: dict[str, Any], word: str) -> None:
    before = stream.state_dict()
    with pytest.raises(CheckpointError, match=word):
        stream.load_state_dict(state)
    assert stream.state_dict() == before


def test_a_position_that_means_nothing_is_refused() -> None:
    folders = [[[[2, 1], [1]]]]
    stream = make_stream(folders)
    stream.take(4)
    state = stream.state_dict()
    refused(stream, {**state, "seed": 4}, "seed was 4")
    refused(stream, {**state, "epoch": -1}, "is not a position")
    refused(stream, {**state, "offset": -1}, "is not a position")
    refused(stream, {**state, "offset": 10**15}, "is not a position")
    refused(make_stream([[[[2, 2], [1]]]]), state, "sources was")


def test_the_end_of_an_epoch_is_a_position() -> None:
    stream = make_stream([[[[2], [1]]]])
    stream.take(3)
    again = make_stream([[[[2], [1]]]])
    again.load_state_dict(stream.state_dict())
    assert stream.epoch == again.epoch == 1.0
    assert examples(again, 9) == examples(stream, 9)


def test_several_folders_are_one(tmp_path: Path) -> None:
    """Read from disk, through the door that training uses."""
    paths = [
        write_puzzles(tmp_path / "a", groups=4, identifiers=3),
        write_puzzles(tmp_path / "b", groups=6, examples=2, identifiers=3, seed=1),
    ]
    folders = [open_puzzles(path) for path in paths]
    stream = open_stream([(folder, 1.0) for folder in folders], "train", seed=0)
    assert isinstance(stream, PuzzleStream)
    assert stream.rows_per_epoch == 4 + 12
    batch = stream.take(16)
    whole = [folder.read("train", slice(0, folder.rows["train"])) for folder in folders]
    arrays = {name: np.concatenate([part[name] for part in whole]) for name in whole[0]}
    assert np.array_equal(batch.sketches, arrays["sketches"][batch.rows])
    assert np.array_equal(batch.labels, arrays["labels"][batch.rows])
    assert np.array_equal(batch.puzzles, arrays["puzzles"][batch.rows])
    assert sum(batch.rows < 8) == 4
    assert batch.children is batch.mask is batch.checksums is None


def test_no_rows_are_a_batch_too() -> None:
    batch = make_stream([[[[1]]]]).take(0, 3, 4)
    assert batch.sketches.shape == batch.labels.shape == (0, SIZE)
    assert batch.puzzles is not None
    assert batch.puzzles.shape == (0,)


def test_evaluation_reads_every_row_once_in_order(tmp_path: Path) -> None:
    data = open_puzzles(write_puzzles(tmp_path / "a", groups=5, copies=3))
    rows = [row for batch in batches_of(data, "train", 4) for row in batch.rows.tolist()]
    assert rows == list(range(15))


def test_what_cannot_be_mixed(tmp_path: Path, capsule_file: Path) -> None:
    folder = open_puzzles(write_puzzles(tmp_path / "a"))
    with open_capsules(capsule_file) as capsules, pytest.raises(ConfigError, match="cannot be mixed"):
        open_stream([(capsules, 1.0), (folder, 1.0)], "train", seed=0)
    with pytest.raises(ConfigError, match="have no weights"):
        open_stream([(folder, 1.0), (folder, 2.0)], "train", seed=0)
    with pytest.raises(DataError, match="has no validation split"):
        PuzzleStream([folder], "validation", seed=0)
