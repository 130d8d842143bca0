"""`trm build-puzzles` as a user runs it: tables, JSON, configs, errors and their codes, signals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path

import pytest
import tiny

from trm_core.data.puzzles.reader import open_puzzles

REAL = tiny.ROOT.parent / "shared" / "data" / "sudoku" / "sudoku10k.txt"


def build(*arguments: object, cwd: Path) -> tiny.Outcome:
    with chdir(cwd):
        return tiny.invoke("build-puzzles", *map(str, arguments))


def test_generated_sudokus_in_words(tmp_path: Path) -> None:
    result = build("sudoku", "--out", "s", "--size", 4, "--count", 40, "--augmentations", 2, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "no source: 40 Sudokus of 4 x 4 are generated (seed 0)" in result.stderr
    assert "\r" not in result.stderr
    lines = result.stdout.splitlines()
    assert lines[:2] == ["s: sudoku", "split  groups  puzzles  examples"]
    assert lines[2].split() == ["train", "36", "108", "108"]
    assert lines[3].split() == ["test", "4", "4", "4"]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_json_config_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "mazes.yaml").write_text("size: 9\ncount: 20\nmin_path: 12\n")
    result = build(
        "maze", "--out", "m", "--config", "mazes.yaml", "--json", "data.puzzles.count=10", "data.puzzles.test=0.3",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["path"], document["kind"]) == ("m", "maze")
    assert document["splits"]["test"] == {"groups": 3, "puzzles": 3, "examples": 3}
    assert open_puzzles(tmp_path / "m").rows == {"train": 7, "test": 3}


def test_print_config_builds_nothing(tmp_path: Path) -> None:
    result = build("maze", "--size", 9, "--print-config", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert any(line.split()[:2] == ["data.puzzles.size", "9"] for line in result.stdout.splitlines())
    assert not list(tmp_path.iterdir())


def test_overwrite(tmp_path: Path) -> None:
    arguments = ("maze", "--out", "m", "--size", 6, "--count", 10)
    assert build(*arguments, cwd=tmp_path).returncode == 0
    before = (tmp_path / "m" / "train" / "all__inputs.npy").read_bytes()
    again = build(*arguments, "--seed", 1, cwd=tmp_path)
    assert again.returncode == 2
    assert "m: exists already" in again.stderr
    assert "--overwrite" in again.stderr
    assert build(*arguments, "--seed", 1, "--overwrite", cwd=tmp_path).returncode == 0
    assert (tmp_path / "m" / "train" / "all__inputs.npy").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["chess", "--out", "x"], 2, "chess: not a kind of puzzle"),
        (["sudoku"], 2, "no output given"),
        (["sudoku", "missing.txt", "--out", "x"], 4, "missing.txt: no such file"),
        (["sudoku", "bad.txt", "--out", "x"], 4, "bad.txt, line 1: a puzzle of 3 characters"),
        (["sudoku", "bad.txt", "--out", "x", "--count", "3"], 2, "data.puzzles.count is for generated puzzles"),
        (["sudoku", "--out", "x", "--size", "7"], 3, "data.puzzles.size: a Sudoku of 7 digits"),
        (["sudoku", "--out", "x", "data.puzzles.clue=3"], 3, "data.puzzles.clue"),
        (["sudoku", "--out", "x", "--seed", "-1"], 3, "data.puzzles.seed"),
    ],
)
def test_mistakes_are_one_line_with_the_right_code(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "bad.txt").write_text("1.3\n")
    result = build(*arguments, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signals_leave_nothing_behind(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "trm_cli.main", "build-puzzles", "maze", "--out", "m", "--count", "100000"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=tiny.environment(tmp_path),
    )
    assert process.stderr is not None
    assert "are generated" in process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "nothing was written" in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL} is not there")
def test_real_sudokus(tmp_path: Path) -> None:
    lines = REAL.read_text().splitlines()[:400]
    (tmp_path / "some.txt").write_text("\n".join(lines))
    result = tiny.run_trm(
        "build-puzzles", "sudoku", "some.txt", "--out", "s", "--subsample", "50", "--augmentations", "10", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert "lines (no header: one puzzle a line), 400 puzzles of 9 x 9" in result.stderr
    found = open_puzzles(tmp_path / "s")
    found.require_trainable()
    assert found.rows == {"train": 550, "test": 40}
