"""Copies of a task are told from the marks of their names, and only where there is no doubt."""

from __future__ import annotations

import base64
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tasks import grids

from trm_core.data.build.arc import GridPair
from trm_core.data.puzzles.arc_copies import Copy, inverse_of
from trm_core.data.puzzles.arc_known_copies import known_copies
from trm_core.data.puzzles.build.arc_augment import draw_copies
from trm_core.data.puzzles.identifiers import recorded_marks

ALL = 10**6
TASKS = st.text(st.characters(exclude_characters="|", exclude_categories=["Cs"]), min_size=1, max_size=12)
COPIES = st.builds(
    lambda transform, colours: Copy(transform, np.array([0, *colours], dtype=np.uint8)),
    st.integers(0, 7),
    st.permutations(range(1, 10)),
)


def marks_of(names: list[str]) -> np.ndarray:
    """What a run that was trained on these identifiers knows of them."""
    marks = np.array([0, *(crc32(name.encode()) for name in names[1:])], "<u4")
    return recorded_marks(len(names), {"names": base64.b64encode(marks.tobytes()).decode(), "begin": [0]})


def found(task: str, names: list[str], most: int = ALL) -> list[tuple[str, int]]:
    return [(one.name, one.number) for one in known_copies(task, marks_of(names), most)]


def copies(task: str, count: int) -> list[str]:
    """The names of a task and its copies, as the builder draws them."""
    grid = np.random.default_rng(0).integers(10, size=(5, 6)).astype(np.uint8)
    return list(draw_copies(task, [GridPair(grid, grid)], count, seed=1).names(task))


def test_every_copy_is_told_by_its_mark() -> None:
    tasks = {"007bbfb7": 2500, "00d62c1b": 3, "AboveBelow1": 0, "z": 2}
    names = ["<blank>", *(name for task, count in tasks.items() for name in copies(task, count))]
    for task in tasks:
        expected = [(name, number) for number, name in enumerate(names) if name.partition("|||")[0] == task]
        got = found(task, names)
        missing = [one for one in expected if one not in set(got)]
        assert got == [one for one in expected if one not in missing]
        assert len(missing) <= 0.001 * len(expected), "two names may share a mark"
        assert found(task, names, 2) == expected[:2], "the first ones, the task itself among them"
    assert found("other", names) == []
    assert found("<blank>", names) == []


@settings(deadline=None)
@given(TASKS, st.lists(COPIES, max_size=3), grids())
def test_what_a_known_copy_shows_can_be_undone(task: str, drawn: list[Copy], grid: np.ndarray) -> None:
    names = ["<blank>", task, *(copy.name(task) for copy in drawn)]
    known = known_copies(task, marks_of(names), ALL)
    for one in known:
        own, undo = inverse_of(one.name)
        assert own == task
        assert np.array_equal(undo(one.copy.apply(grid)), grid)
    assert np.array_equal(known[0].copy.apply(grid), grid)
    for one, copy in zip(known[1:], drawn, strict=False):
        assert np.array_equal(one.copy.apply(grid), copy.apply(grid)), "the grid as this copy showed it in training"


def test_a_mark_of_two_names_is_left_out() -> None:
    twin, other = "|||t7|||0174582693", "|||t3|||0837164529"
    assert crc32(twin.encode()) == crc32(other.encode())
    for task in ("abc", "007bbfb7"):
        before, after = copies(task, 2)[1:]
        names = ["<blank>", task, before, task + twin, after]
        assert found(task, names) == [(task, 1), (before, 2), (after, 4)]


def test_the_next_task_is_no_copy_even_if_its_mark_is_that_of_one() -> None:
    """The mark of this name is also that of a copy of the task before."""
    task, following = "007bbfb7", "9b50333b"
    names = ["<blank>", *copies(task, 2), *copies(following, 2)]
    assert found(task, ["<blank>", task, following])[-1][1] == 2, "by its mark alone it would be one"
    assert [number for _, number in found(task, names)] == [1, 2, 3]
    assert [number for _, number in found(following, names)] == [4, 5, 6]


@pytest.mark.parametrize("place", [1023, 1024, 1025, 2048])
def test_copies_end_anywhere(place: int) -> None:
    names = ["<blank>", *copies("007bbfb7", place), *copies("00d62c1b", 5)]
    assert found("007bbfb7", names)[-1] == (names[place + 1], place + 1)
    assert len(found("00d62c1b", names)) == 6
