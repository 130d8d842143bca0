"""Puzzles as people write them, and answers as they read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_puzzles

from trm_core.data.puzzles.answers import drawn, readable, right, valid
from trm_core.data.puzzles.meaning import Meaning, guessed, meaning_of, meaning_of_record
from trm_core.data.puzzles.question_files import questions_of_file, questions_of_text
from trm_core.data.puzzles.questions import question_of
from trm_core.data.puzzles.reader import open_puzzles
from trm_core.errors import DataError

SUDOKU = Meaning("sudoku", 4, 4, ["<pad>", ".", "1", "2", "3", "4"])
MAZE = Meaning("maze", 3, 3, ["<pad>", "#", " ", "S", "G", "o"])
ARC = guessed(12, 900)
NUMBERS = guessed(tiny_puzzles.VOCAB, tiny_puzzles.SIZE)


def read(text: str, meaning: Meaning) -> list[list[int]]:
    return [question.tokens.tolist() for question in questions_of_text(text, meaning, "file")]


def test_sizes_of_the_public_builders_are_known() -> None:
    assert [guessed(*sizes).kind for sizes in ((11, 81), (6, 900), (12, 900), (11, 80), (7, 81))] == [
        "sudoku", "maze", "arc", "tokens", "tokens",
    ]  # fmt: skip
    assert (guessed(6, 900).height, guessed(7, 10).height, guessed(7, 10).width) == (30, 1, 10)
    assert guessed(11, 81).tokens["9"] == 10  # the digit d is d + 1, as the public code writes it
    assert guessed(6, 900).tokens["o"] == 5
    assert guessed(12, 900).symbols[2:] == list("0123456789")


def test_the_manifest_of_a_folder_counts_more_than_its_sizes(sudoku_folder: Path, tmp_path: Path) -> None:
    assert meaning_of(open_puzzles(sudoku_folder)) == SUDOKU  # by the sizes it were a maze
    assert meaning_of(open_puzzles(tiny_puzzles.write_puzzles(tmp_path / "other"))).kind == "tokens"


def test_a_record_gives_the_meaning_back_or_is_refused() -> None:
    record = json.loads(json.dumps(SUDOKU.as_record()))
    assert meaning_of_record(record, 6, 16) == SUDOKU
    forged: list[Any] = [
        {**record, "kind": "chess"}, {**record, "height": 5}, {**record, "height": "4"}, {**record, "blank": -1},
        {**record, "symbols": "......"}, {**record, "more": 1}, {}, None, [],
    ]  # fmt: skip
    for other in forged:
        with pytest.raises(ValueError, match="puzzles"):
            meaning_of_record(other, 6, 16)


def test_sudoku_lines() -> None:
    assert read("1...0.2...3....4\n\n", SUDOKU) == [[2, 1, 1, 1, 1, 1, 3, 1, 1, 1, 4, 1, 1, 1, 1, 5]]
    (question,) = questions_of_text("1..............., 1234341221434321", SUDOKU, "file")
    assert question.labels is not None
    assert readable(question.labels, SUDOKU) == "1234341221434321"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1...", "file, line 1: 4 characters, expected 16"),
        ("\n123x............", "file, line 2: the character 'x'"),
        ("5...............", "the character '5'"),
        ("1............... 1... 3", "3 words"),
        ("1............... 1...", "line 1, solution: 4 characters"),
        ('{"input": [[1]]}', "1 digits, expected 16"),
        ("[[1, 2, 3, 5], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]", "position 3: '5' is not a digit"),
        ('{"input": "1...............", "puzzle": -1}', "puzzle is '-1'"),
        ('{"inputs": 1}', "'inputs' has no list of test pairs"),
        ('{"input": 3}', "'3' is not a puzzle"),
        ("[1, 2", "not JSON"),
    ],
)
def test_what_is_no_sudoku_is_named(text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(text, SUDOKU)
    assert message in str(caught.value)


def test_mazes_drawn_and_in_a_line() -> None:
    """The editor has cut the space at the end of the second line."""
    rows = [3, 2, 2, 1, 1, 2, 4, 2, 2]
    assert read("S  \n## \nG  \n\n\nS  ##G   ", MAZE) == [rows, [3, 2, 2, 1, 1, 4, 2, 2, 2]]
    assert read("S\n##\nG", MAZE) == [rows]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S  \n## \n", "the last maze has 2 lines"),
        ("S  \n\n## ", "line 2: a maze of 1 lines"),
        ("S    ", "line 1: 5 characters"),
        ("S  \n#x \nG  ", "the character 'x'"),
    ],
)
def test_what_is_no_maze_is_named(text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(text, MAZE)
    assert message in str(caught.value)


def test_arc_as_pair_task_tasks_and_lines() -> None:
    grid = [[1, 0], [0, 2]]
    (expected,) = read(json.dumps({"input": grid}), ARC)
    assert np.reshape(expected, (30, 30))[:3, :3].tolist() == [[3, 2, 1], [2, 4, 1], [1, 1, 0]]
    task = {"train": [{"input": [[3]], "output": [[3]]}], "test": [{"input": grid, "output": grid}]}
    for text in (
        json.dumps(grid), json.dumps([{"input": grid}]), json.dumps(task), json.dumps({"a": task}),
        "\n".join([json.dumps({"input": grid})] * 2),
    ):  # fmt: skip
        assert read(text, ARC)[-1] == expected
    (question,) = questions_of_text(json.dumps(task), ARC, "file")
    assert question.labels is not None
    assert readable(question.labels, ARC) == grid
    assert question_of({"input": grid, "puzzle": 7}, ARC, "here").puzzle == 7
    with pytest.raises(DataError, match=r"line 2.*holds 11"):
        read('{"input": [[1]]}\n{"input": [[11]]}', ARC)


def test_numbers_and_csv(tmp_path: Path) -> None:
    assert read("1 2 3 4 1 2\n1,2,3,4,1,2", NUMBERS) == [[1, 2, 3, 4, 1, 2]] * 2
    with pytest.raises(DataError, match=r"line 1, position 2: '5' is not a token"):
        read("1 2 5 4 1 2", NUMBERS)
    path = tmp_path / "a.csv"
    path.write_text("source,question,answer\nme,1...............,1234341221434321\n")
    (question,) = questions_of_file(path, SUDOKU)
    assert question.tokens[0] == 2
    assert question.labels is not None


def test_characters_that_a_folder_names_are_read_and_written() -> None:
    latin = Meaning("tokens", 2, 3, ["<pad>", ".", "a", "b", "c"])
    tokens = [2, 1, 3, 1, 4, 2]
    assert read("a.b.ca\n2 1 3 1 4 2\n2,1,3,1,4,2", latin) == [tokens] * 3
    (question,) = questions_of_text("a.b.ca acbbca", latin, "file")
    assert question.labels is not None
    assert readable(question.labels, latin) == "acbbca"
    assert drawn(tokens, latin) == "a.b\n.ca"
    for text, message in (("a.b.cx", "the character 'x'"), ("a.b", "3 characters, expected 6")):
        with pytest.raises(DataError, match=message) as caught:
            read(text, latin)
        assert caught.value.hint == "6 numbers from 0 to 4, or 6 characters out of .abc"
    for symbols in (["<pad>", "1", "2", "3", "4"], ["<pad>", ".", "a", "b", "ten"], ["<pad>", ".", "a", "b", "b"]):
        plain = Meaning("tokens", 2, 3, symbols)
        assert readable(tokens, plain) == tokens
        with pytest.raises(DataError, match="1 tokens, expected 6"):
            read("a.b.ca", plain)


def test_puzzles_of_one_or_two_cells_in_characters() -> None:
    """As many words as cells are numbers only if they look like numbers."""
    one, two = Meaning("tokens", 1, 1, ["<pad>", "a", "b"]), Meaning("tokens", 1, 2, ["<pad>", "a", "b"])
    assert read("a\n2", one) == [[1], [2]]
    (question,) = questions_of_text("ab bb", two, "file")
    assert question.tokens.tolist() == [1, 2]
    assert question.labels is not None
    assert question.labels.tolist() == [2, 2]
    assert read("1 2", two) == [[1, 2]]


def test_arrays_are_puzzles_too() -> None:
    tokens = np.array([1, 2, 3, 4, 1, 2], np.int32)
    for value in (tokens, list(tokens), tokens.reshape(2, 3), list(tokens.reshape(2, 3)), {"input": tokens}):
        assert question_of(value, NUMBERS, "here").tokens.tolist() == tokens.tolist()
    identifiers = np.array([3, 4], np.int32)
    assert question_of({"input": tokens, "puzzle": identifiers[1]}, NUMBERS, "here").puzzle == 4
    grid = np.array([[1, 0], [0, 2]])
    assert np.array_equal(question_of(grid, ARC, "").tokens, question_of(grid.tolist(), ARC, "").tokens)
    with pytest.raises(DataError, match=r"position 0: '1\.0' is not a token"):
        question_of(tokens.astype(float), NUMBERS, "here")


def test_a_sudoku_is_valid_if_it_keeps_the_givens_and_breaks_no_rule() -> None:
    def of(question: str, answer: str) -> bool | None:
        return valid(*(question_of(text, SUDOKU, "").tokens for text in (question, answer)), SUDOKU)

    assert of("1...............", "1234341221434321")
    assert not of("2...............", "1234341221434321")  # another given
    assert not of("1...............", "1234123412341234")  # rows and boxes are wrong
    assert not of("1...............", "1234341221431324")  # columns are wrong
    assert not of("1...............", "1234341221434 21".replace(" ", "."))
    assert valid(np.zeros(6), np.zeros(6), NUMBERS) is None


def test_a_maze_is_valid_if_the_way_is_a_shortest_one() -> None:
    def of(answer: str) -> bool | None:
        return valid(*(question_of(text, MAZE, "").tokens for text in ("S  ##  G ", answer)), MAZE)

    assert of("Soo##o Go"[:9])
    assert not of("S  ##  G ")
    assert not of("Soo##ooG ")
    assert valid(question_of("S  ##  G ", MAZE, "").tokens, np.zeros(9, int), MAZE) is False


def test_right_ignores_what_is_not_asked_for_and_compares_grids() -> None:
    assert right(np.array([-100, 2, 3]), np.array([9, 2, 3]), NUMBERS)
    assert not right(np.array([-100, 2, 3]), np.array([9, 2, 4]), NUMBERS)
    label = question_of([[1, 2]], ARC, "").tokens
    answer = label.copy()
    answer[-1] = 5  # far outside of the grid
    assert right(np.where(label == 0, -100, label), answer, ARC)
    answer[0] = 5
    assert not right(label, answer, ARC)
    assert readable(np.zeros(900, int), ARC) is None


def test_drawings() -> None:
    tokens = question_of("1234341221434321", SUDOKU, "").tokens
    assert drawn(tokens, SUDOKU).splitlines()[1:3] == ["3 4 | 1 2", "----+----"]
    assert drawn(question_of("S  ##  G ", MAZE, "").tokens, MAZE) == "S  \n## \n G "
    assert drawn(question_of([[1, 2], [3, 4]], ARC, "").tokens, ARC) == "1 2\n3 4"
    assert readable(np.array([0, 1, 2, 99] * 4), SUDOKU) == "?.1?" * 4
