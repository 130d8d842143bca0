"""When an answer is the known one."""

from __future__ import annotations

import numpy as np
import pytest

from trm_core.data.fields import IGNORE_LABEL
from trm_core.data.puzzles.answers import right
from trm_core.data.puzzles.arc_tokens import lay
from trm_core.data.puzzles.meaning import guessed

ARC = guessed(12, 900)


@pytest.mark.parametrize("offset", [0, 5])
def test_an_arc_answer_is_right_in_the_corner_and_moved_off_it(offset: int) -> None:
    grid = np.arange(12, dtype=np.uint8).reshape(3, 4) % 10
    answer = np.asarray(lay(grid, offset, offset)).reshape(-1).astype(np.int64)
    labels = np.where(answer == 0, IGNORE_LABEL, answer)
    assert right(labels, answer, ARC)
    assert not right(labels, np.zeros_like(answer), ARC), "an answer that is all padding is no answer"
    wrong = answer.copy()
    place = int(np.flatnonzero(answer > 1)[0])
    wrong[place] = 2 + (answer[place] - 1) % 10
    assert not right(labels, wrong, ARC)
    if offset:
        beside = answer.copy()
        beside[0] = 7  # where nothing was asked
        assert right(labels, beside, ARC)
