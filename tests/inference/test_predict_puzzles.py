"""`trm predict` on puzzles: folders, files and stdin in; files, lines, documents and drawings out."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_puzzles
from typer.testing import CliRunner

from trm_cli import predict_output
from trm_cli.main import app
from trm_core.data.puzzles.answers import readable
from trm_core.data.puzzles.meaning import meaning_of
from trm_core.data.puzzles.reader import open_puzzles
from trm_core.inference.predictor import Predictor
from trm_core.inference.puzzle_source import puzzle_record, puzzle_source


@pytest.fixture(scope="module")
def texts(sudoku_folder: Path) -> list[tuple[str, str]]:
    data = open_puzzles(sudoku_folder)
    block = data.read("test", slice(0, 30))
    pairs = zip(block["sketches"], block["labels"], strict=True)
    return [(readable(question, meaning_of(data)), readable(answer, meaning_of(data))) for question, answer in pairs]


@pytest.fixture(scope="module")
def answered(sudoku_run: Path, sudoku_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("out") / "answers.jsonl"
    done = tiny.invoke("predict", sudoku_folder, "--model", sudoku_run, "--out", out)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in out.read_text().splitlines()]
    right = sum(record["right"] for record in records)
    assert f"30 answers: {out} (3.00 steps per puzzle, {right / 30:.1%} right" in done.stdout
    return records


def test_a_folder_into_a_file(answered: list[dict[str, Any]], texts: list[tuple[str, str]]) -> None:
    assert [record["row"] for record in answered] == list(range(30))
    for record, (_, solution) in zip(answered, texts, strict=True):
        assert record["right"] == (record["answer"] == solution)
        assert record["right"] == record["valid"]  # these have one solution each
        assert {"confidence", "halt_probability", "steps", "prediction"} <= record.keys()
        assert not {"label", "opened", "spent", "decisions"} & record.keys()
    assert {record["right"] for record in answered} == {True, False}


def test_a_folder_may_be_answered_on_stdout(
    answered: list[dict[str, Any]],
    sudoku_run: Path,
    sudoku_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = tiny.invoke("predict", sudoku_folder, "--model", sudoku_run, "--out", "-")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["answer"] for line in done.stdout.splitlines()] == [one["answer"] for one in answered]
    assert not list(tmp_path.iterdir())


def test_lines_of_a_file_are_answered_on_stdout(
    answered: list[dict[str, Any]], texts: list[tuple[str, str]], sudoku_run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "puzzles.txt"
    path.write_text("\n".join(f"{question} {answer}" for question, answer in texts))
    done = tiny.invoke("predict", path, "--model", sudoku_run)
    assert done.returncode == 0, done.stderr
    for line, expected in zip(done.stdout.splitlines(), answered, strict=True):
        found = json.loads(line)
        assert found["confidence"] == pytest.approx(expected["confidence"], abs=1e-4)
        assert [found[name] for name in ("row", "answer", "right")] == [
            expected[name] for name in ("row", "answer", "right")
        ]


def test_stdin_more_steps_and_restarts(texts: list[tuple[str, str]], sudoku_run: Path) -> None:
    asked = ["predict", "-", "--model", str(sudoku_run), "--json", "--max-steps", "5", "--restarts", "3", "--decisions"]
    result = CliRunner().invoke(app, asked, input=texts[0][0] + "\n", prog_name="trm")
    assert result.exit_code == 0, result.stderr
    (record,) = json.loads(result.stdout)["answers"]
    assert "right" not in record  # nobody said
    assert record["steps"] <= 5
    assert record["steps_in_all"] >= 3
    assert record["restart"] in (0, 1, 2)
    assert len(record["decisions"]) == record["steps"]


def test_a_human_sees_a_grid(
    texts: list[tuple[str, str]], sudoku_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "puzzles.txt"
    path.write_text(texts[0][0])
    monkeypatch.setattr(predict_output, "is_terminal", lambda stream: stream is sys.stdout)
    done = tiny.invoke("predict", path, "--model", sudoku_run)
    assert done.returncode == 0, done.stderr
    head, *grid = done.stdout.splitlines()
    assert head.startswith("puzzle 0, ")
    assert grid[2] == "----+----"
    assert [len(line) for line in grid[:5]] == [9] * 5


def test_the_thinking_is_drawn_and_animated(
    texts: list[tuple[str, str]], sudoku_run: Path, tmp_path: Path, trained_run: Path, capsule_file: Path
) -> None:
    path, gif = tmp_path / "puzzles.txt", tmp_path / "thinking.gif"
    path.write_text("\n".join(question for question, _ in texts))
    done = tiny.invoke("predict", path, "--model", sudoku_run, "--show", "--gif", gif, "--row", "2")
    assert done.returncode == 0, done.stderr
    for title in ("question", "step 1,", "step 3,"):
        assert title in done.stdout
    assert gif.read_bytes()[:6] == b"GIF89a"
    refused = tiny.invoke("predict", path, "--model", sudoku_run, "--show", "--row", "30")
    assert refused.returncode == 2
    assert "has 30 rows" in refused.stderr
    of_capsules = tiny.invoke("predict", capsule_file, "--model", trained_run, "--policy", "all", "--show")
    assert of_capsules.returncode == 0, of_capsules.stderr
    assert "opened 0, 1, 2, 3" in of_capsules.stdout


def test_what_is_wrong_is_said_before_anything_is_answered(sudoku_run: Path, trained_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "puzzles.txt"
    path.write_text("1...............\n1..\n")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    cases: list[tuple[list[Any], int, str]] = [
        ([path, "--model", sudoku_run], 4, "puzzles.txt, line 2: 3 characters, expected 16"),
        ([empty, "--model", sudoku_run], 4, "no puzzles in it"),
        ([tmp_path, "--model", sudoku_run], 4, "not a folder of puzzles"),
        ([tmp_path / "nothing", "--model", sudoku_run], 4, "no such file"),
        ([path, "--model", sudoku_run, "--split", "test"], 2, "has no splits"),
        (["-", "--model", trained_run], 4, "does not hold the encoder"),
        ([path, path, "--model", sudoku_run], 2, "one file or folder of puzzles at a time"),
        (["-", path, "--model", sudoku_run], 2, "cannot be combined with"),
        (["--model", sudoku_run], 2, "nothing to answer"),
    ]
    for arguments, code, message in cases:
        done = tiny.invoke("predict", *arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert message in done.stderr
        assert not done.stdout


def test_a_source_goes_on_from_any_row(
    texts: list[tuple[str, str]], sudoku_run: Path, sudoku_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "puzzles.txt"
    path.write_text("\n".join(question for question, _ in texts))
    predictor = Predictor.load(sudoku_run, device="cpu")
    for place in (path, sudoku_folder):
        source = puzzle_source(place, predictor, None)
        every, rest = list(source.start(0)), list(source.start(27))
        assert (len(every), len(rest), source.rows) == (30, 3, 30)
        for a, b in zip(every[27:], rest, strict=True):
            assert a.sketches.tolist() == b.sketches.tolist()


def test_a_folder_of_other_puzzles_is_refused(sudoku_run: Path, tmp_path: Path) -> None:

    other = tiny_puzzles.write_puzzles(tmp_path / "other")
    done = tiny.invoke("predict", other, "--model", sudoku_run, "--out", tmp_path / "out.jsonl")
    assert done.returncode == 4
    assert "its puzzles have 6 tokens, those of the model 16" in done.stderr


def test_a_file_with_a_mark_at_its_start_and_the_record_of_a_right_answer(sudoku_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "puzzles.txt"
    path.write_bytes(b"\xef\xbb\xbf1............... 1234341221434321\n")
    predictor = Predictor.load(sudoku_run, device="cpu")
    source = puzzle_source(path, predictor, None)
    (sample,) = source.start(0)
    (answer,) = predictor.stream([sample])
    assert sample.labels is not None
    perfect = replace(answer, prediction=tuple(int(token) for token in sample.labels))
    meaning = predictor.trained.puzzles
    assert meaning is not None
    record = puzzle_record(sample, perfect, meaning)
    assert (record["answer"], record["valid"], record["right"]) == ("1234341221434321", True, True)
    other = replace(answer, prediction=tuple(np.roll(sample.labels, 1).tolist()))
    assert puzzle_record(sample, other, meaning)["right"] is False
