"""The animations: as many frames as steps and one more, all of one size, and something on each."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import thoughts
from PIL import Image

from trm_core.errors import UsageError
from trm_core.render.animation import drawing_of, frames, write_animation
from trm_core.render.thinking import CapsuleStep, CapsuleThinking, PuzzleThinking

Thinking = PuzzleThinking | CapsuleThinking


@pytest.mark.parametrize(
    "thinking",
    [thoughts.sudoku(), thoughts.maze(), thoughts.capsules(), thoughts.capsules(7, ["a", "$b$", "c"])],
    ids=["sudoku", "maze", "lattice", "row"],
)
def test_a_frame_for_each_step_and_the_answer_for_longer(thinking: Thinking, tmp_path: Path) -> None:
    path = tmp_path / "thinking.gif"
    write_animation(thinking, path, seconds=0.5, hold_seconds=2.5)
    with Image.open(path) as image:
        assert image.n_frames == len(thinking.steps) + 1
        durations = []
        for number in range(image.n_frames):
            image.seek(number)
            durations.append(image.info["duration"])
        assert durations == [500] * len(thinking.steps) + [2500]
        assert image.info["loop"] == 0
        assert max(image.size) <= 1000


def test_frames_differ_and_show_the_colours_of_their_grid() -> None:
    thinking = thoughts.arc()
    drawn = list(frames(drawing_of(thinking), len(thinking.steps)))
    assert len({frame.shape for frame in drawn}) == 1
    assert not np.array_equal(drawn[0], drawn[1])
    colours = {tuple(pixel) for pixel in drawn[-1].reshape(-1, 3).tolist()}
    assert (0x00, 0x74, 0xD9) in colours  # blue, colour 1, is in one of the grids
    assert drawn[0][0, 0].tolist() == [255, 255, 255]


def test_where_no_animation_can_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot animate"):
        write_animation(thoughts.maze(), tmp_path / "thinking.png")
    with pytest.raises(UsageError, match="cannot write"):
        write_animation(thoughts.maze(), tmp_path / "nowhere" / "thinking.gif")


def test_capsules_in_wrapped_rows_are_drawn_apart() -> None:
    """Each of the 500 has its own place: as many patches as are open."""
    thinking = CapsuleThinking(500, [CapsuleStep(np.array([1.0, np.nan]), range(0, 500, 2))])
    (frame, _) = frames(drawing_of(thinking), 1)
    orange = (frame == np.array([0xFF, 0xB0, 0x00])).all(axis=-1)
    columns = np.flatnonzero(np.diff(orange.any(axis=0).astype(int)) == 1)
    rows = np.flatnonzero(np.diff(orange.any(axis=1).astype(int)) == 1)
    assert (len(rows), len(columns)) == (16, 16)


def test_names_that_no_font_has_are_drawn_by_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from matplotlib import font_manager

    own = [font for font in font_manager.fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notes = write_animation(thoughts.capsules(4, ["dog", "猫", "été"]), tmp_path / "thinking.gif")
    assert notes == ["no installed font has '猫': classes with such characters are drawn by number"]
    assert drawing_of(thoughts.capsules(4, ["a", "b", "c"])).notes == []
