"""Copies of ARC tasks: forth and back, their names, and grids as tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_tasks import SIDES, grids

from trm_core.data.build.arc import GridPair
from trm_core.data.puzzles.arc_copies import Copy, inverse_of, transformed
from trm_core.data.puzzles.arc_tokens import END, PAD, SEQUENCE, crops, lay
from trm_core.data.puzzles.build.arc_augment import draw_copies, lay_copies
from trm_core.errors import DataError

COPIES = st.builds(
    lambda transform, colours: Copy(transform, np.array([0, *colours], dtype=np.uint8)),
    st.integers(0, 7),
    st.permutations(range(1, 10)),
)


@given(COPIES, grids())
def test_a_name_is_enough_to_go_back(copy: Copy, grid: np.ndarray) -> None:
    name, undo = inverse_of(copy.name("0a1b2c3d"))
    assert name == "0a1b2c3d"
    assert np.array_equal(undo(copy.apply(grid)), grid)
    assert undo(copy.apply(grid)).dtype == np.uint8


def test_the_transforms_are_those_of_the_public_code() -> None:
    grid = np.array([[1, 2], [3, 4]])
    shown = [transformed(grid, number).tolist() for number in range(8)]
    assert shown == [
        [[1, 2], [3, 4]],
        [[2, 4], [1, 3]],
        [[4, 3], [2, 1]],
        [[3, 1], [4, 2]],
        [[2, 1], [4, 3]],
        [[3, 4], [1, 2]],
        [[1, 3], [2, 4]],
        [[4, 2], [3, 1]],
    ]
    assert Copy(3, np.array([0, 4, 1, 7, 5, 8, 2, 9, 6, 3], dtype=np.uint8)).name("ab") == "ab|||t3|||0417582963"


def test_a_name_without_suffix_is_the_task_itself() -> None:
    name, undo = inverse_of("AboveBelow1")
    grid = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert name == "AboveBelow1"
    assert np.array_equal(undo(grid), grid)


@pytest.mark.parametrize("suffix", ["t8|||0123456789", "t0", "t0|||0123456788", "t0|||012345678", "x|||0123456789", ""])
def test_what_is_no_name_of_a_copy_is_refused(suffix: str) -> None:
    with pytest.raises(DataError, match="not the name of a copy"):
        inverse_of(f"task|||{suffix}")


@given(grids())
def test_a_grid_survives_its_tokens(grid: np.ndarray) -> None:
    (found,) = crops(lay(grid).reshape(1, SEQUENCE))
    assert found is not None
    assert np.array_equal(found, grid)


@given(st.data(), SIDES, SIDES)
def test_end_markers_frame_the_grid_where_there_is_room(data: st.DataObject, height: int, width: int) -> None:
    row, column = data.draw(st.integers(0, 30 - height)), data.draw(st.integers(0, 30 - width))
    square = lay(np.zeros((height, width), dtype=np.uint8), row, column)
    frame = [(row + height, c) for c in range(column, column + width)] + [
        (r, column + width) for r in range(row, row + height)
    ]
    assert {tuple(cell) for cell in np.argwhere(square == END).tolist()} == {(r, c) for r, c in frame if max(r, c) < 30}
    assert (square[row : row + height, column : column + width] == 2).all()
    assert (square != PAD).sum() == height * width + (square == END).sum()


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.3))
def test_the_crop_is_the_largest_rectangle_without_markers(seed: int, holes: float) -> None:
    random = np.random.default_rng(seed)
    square = np.where(random.random((30, 30)) < holes, random.integers(2, size=(30, 30)), 2 + random.integers(10))
    clear = [(h, w) for h in range(1, 31) for w in range(1, 31) if (square[:h, :w] >= 2).all()]
    (found,) = crops(square.reshape(1, SEQUENCE))
    if not clear:
        assert found is None
        return
    assert found is not None
    assert found.size == max(h * w for h, w in clear)
    assert np.array_equal(found + 2, square[: found.shape[0], : found.shape[1]])


def test_copies_differ_and_a_symmetric_task_has_few() -> None:
    random = np.random.default_rng(0)
    pairs = [GridPair(*random.integers(10, size=(2, 4, 5)).astype(np.uint8)) for _ in range(3)]
    copies = draw_copies("task", pairs, 200, seed=1)
    assert len(copies) == 201
    assert len(set(copies.names("task"))) == 201
    assert next(copies.names("task")) == "task"
    one_colour = GridPair(np.full((3, 3), 5, np.uint8), np.zeros((1, 1), np.uint8))
    assert 8 <= len(draw_copies("task", [one_colour], 200, seed=1)) <= 9


def test_a_task_with_few_different_copies_gets_nearly_all_of_them() -> None:
    two_colours = GridPair(np.array([[1, 2, 0], [0, 0, 0]], np.uint8), np.zeros((1, 1), np.uint8))
    for seed in range(4):
        # 8 symmetries, and 9 x 8 pairs of colours; 5 draws for each copy miss one of them every tenth time.
        assert 575 <= len(draw_copies("task", [two_colours], 1000, seed)) <= 576


@given(st.integers(0, 2**32 - 1))
def test_translated_pairs_move_together_and_one_stays(seed: int) -> None:
    random = np.random.default_rng(seed)
    pairs = [
        GridPair(*(random.integers(10, size=random.integers(1, 31, size=2)).astype(np.uint8) for _ in range(2)))
        for _ in range(3)
    ]
    copies = draw_copies("task", pairs, 4, seed)
    flat = lay_copies("task", pairs, copies, 0, seed=seed, translate=False)
    inputs, labels = lay_copies("task", pairs, copies, 0, seed=seed, translate=True)
    for number in range(len(copies)):
        stayed = 0
        for example in range(3 * number, 3 * number + 3):
            corners = []
            for moved, plain in zip((inputs, labels), flat, strict=True):
                (grid,) = crops(plain[example : example + 1])
                assert grid is not None
                square = moved[example].reshape(30, 30)
                row, column = np.argwhere(square >= 2).min(axis=0).tolist()
                assert np.array_equal(square, lay(grid, row, column))
                corners.append((row, column))
            assert corners[0] == corners[1]
            stayed += corners[0] == (0, 0)
        assert stayed >= 1
