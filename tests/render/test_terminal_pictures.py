"""The thinking on a terminal, with colours and without."""

from __future__ import annotations

import io

import numpy as np
import pytest
import thoughts
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from trm_core.data.puzzles.layout import Manifest
from trm_core.render.terminal import PuzzlePanels
from trm_core.render.terminal_capsules import CapsulePanels
from trm_core.render.thinking import CapsuleStep, CapsuleThinking, PuzzleThinking


def printed(renderable: RenderableType, *, colours: bool = False, width: int = 100) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colours, color_system="truecolor" if colours else None)
    console.print(renderable)
    return file.getvalue()


def test_a_sudoku_has_boxes_and_stars_where_it_changed() -> None:
    text = printed(PuzzlePanels(thoughts.sudoku()), width=26)
    assert "\x1b" not in text
    question, first, second, _ = text.split("╰")
    assert "│ 2 . │ . . " in question
    assert "│ ────┼─────" in question
    assert "│ 2 1*│ 1*1*" in first
    assert "│ 3*1 │ 1 1 " in second
    assert "step 2, halt 50%" in second
    assert "─ 2 changed, sure 50% ─" in text


def test_colours_mark_given_changed_and_contradicting_cells() -> None:
    text = printed(PuzzlePanels(thoughts.sudoku()), colours=True)
    assert "\x1b[1m2 " in text  # given: bold
    assert "48;2;255;215;95m1 " in text  # changed
    assert "38;2;215;0;0m3 " in text  # contradicts the question


@pytest.mark.parametrize("thinking", [thoughts.maze(), thoughts.arc(), thoughts.arc(30)], ids=["maze", "arc", "large"])
@pytest.mark.parametrize("width", [20, 45, 80, 200])
def test_nothing_is_wider_than_the_terminal(thinking: PuzzleThinking, width: int) -> None:
    for colours in (False, True):
        for line in printed(PuzzlePanels(thinking), colours=colours, width=width).splitlines():
            assert Text.from_ansi(line).cell_len <= width


def test_an_arc_square_is_cut_to_what_it_holds() -> None:
    lines = printed(PuzzlePanels(thoughts.arc(3))).splitlines()
    assert len(lines) <= 5 * 2
    assert any("0 changed" in line for line in lines)


def test_mazes_keep_their_letters() -> None:
    assert "S o*G" in printed(PuzzlePanels(thoughts.maze()))
    assert "\x1b[1;38;2;0;0;0;48;2;46;204;64mS " in printed(PuzzlePanels(thoughts.maze()), colours=True)


def test_tokens_that_mean_nothing_and_symbols_that_steer_terminals_do_no_harm() -> None:
    manifest = Manifest(kind="tokens", height=1, width=4, symbols=["<pad>", "\x1b[31m", "a", "long"])
    thinking = PuzzleThinking(manifest, np.array([0, 1, 2, 3]), thoughts.steps(np.array([9, -1, 2, 3])))
    text = printed(PuzzlePanels(thinking))
    assert "\x1b" not in text
    assert "? ? a lo" in text


def test_capsules_show_when_they_were_opened_and_how_belief_moved() -> None:
    text = printed(CapsulePanels(thoughts.capsules(4, ["cat", "dog", "\x1b[31m"])), width=40)
    assert "\x1b" not in text
    steps = text.split("╰")
    assert "opened nothing" in steps[1]
    assert "  2*  ." in steps[1]
    assert "  .   2*" in steps[1]
    assert "opened 0, 3" in steps[2]
    assert "80% +40%" in steps[1]
    assert "  2   3*" in steps[2]
    assert "100% +20%" in steps[2]
    assert "?[31m" in text


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("count", [1, 7, 49])
def test_any_number_of_capsules_fits(count: int, width: int) -> None:
    thinking = CapsuleThinking(count, [CapsuleStep(np.array([0.5, 0.5]), (0,))], ["x" * 50, "y"])
    for line in printed(CapsulePanels(thinking), width=width).splitlines():
        assert cell_len(line) <= width


def test_what_leads_after_a_step_stands_in_its_panel() -> None:
    thinking = thoughts.changing_its_mind(12)
    panels = printed(CapsulePanels(thinking), width=40).split("╰")
    for number, panel in enumerate(panels[:-1]):
        assert any(line.split()[1] == str(number) and "#" in line.replace("█", "#") for line in panel.splitlines()[4:])
    assert thinking.leaders(5)[0] == 11


def test_beliefs_that_are_no_numbers_are_shown_as_such() -> None:
    thinking = CapsuleThinking(4, [CapsuleStep(np.full(3, np.nan)), CapsuleStep(np.array([0.0, np.nan, 1.0]))])
    assert " nan%" in printed(CapsulePanels(thinking))


def test_long_rows_of_capsules_are_wrapped() -> None:
    lattices = [CapsuleThinking(count, [CapsuleStep(np.ones(1))]).lattice for count in (1, 7, 24, 30, 49, 500)]
    assert lattices == [(1, 1), (1, 7), (1, 24), (2, 24), (7, 7), (16, 32)]


def test_thinking_that_does_not_fit_its_puzzle_is_a_mistake() -> None:
    sudoku = thoughts.sudoku()
    with pytest.raises(AssertionError):
        PuzzleThinking(sudoku.manifest, sudoku.inputs[:-1], sudoku.steps)
    with pytest.raises(AssertionError):
        CapsuleThinking(2, [CapsuleStep(np.ones(1), (2,))])
