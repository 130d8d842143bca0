"""Damaged and hostile puzzle folders: refused in one line, or read as they are.

Nothing in the layout protects the tokens, so a folder with other sound tokens is simply another folder.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random

import pytest
import tiny
from amount import many
from bytes_damage import damaged
from hostile_json import hostile_json
from hostile_npy import hostile_npy
from judge import Bench
from tiny_puzzles import ARCH, write_puzzles

SHORT, LONG = 14, many(50)
MANIFEST = {"kind": "tokens", "height": 2, "width": 3, "symbols": ["pad", "1", "2", "3", "4"], "sources": ["a.csv"]}


@pytest.fixture(scope="module")
def puzzles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_puzzles(tmp_path_factory.mktemp("fuzz") / "puzzles", groups=6, copies=2, examples=2, identifiers=4)
    (folder / "trm.json").write_text(json.dumps(MANIFEST))
    return folder


@pytest.fixture(scope="module")
def puzzle_run(puzzles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    done = tiny.invoke("train", *overrides(puzzles), f"training.run_dir={run}", "training.total_steps=2")
    assert done.returncode == 0, done.stderr
    return run


def overrides(folder: Path) -> list[str]:
    return tiny.as_overrides(arch=ARCH, data={"path": folder})


def attack(random: Random, folder: Path, marker: Path) -> str:
    """Change one file of the folder."""
    path = random.choice(sorted(folder.rglob("*.json" if random.random() < 0.35 else "*.npy")))
    kind = random.random()
    if kind < 0.05:
        path.unlink()
        what = random.choice(("gone", "folder", "pipe", "link to itself", "endless"))
        if what == "folder":
            path.mkdir()
        elif what == "pipe":
            os.mkfifo(path)
        elif what == "link to itself":
            path.symlink_to(path)
        elif what == "endless":
            path.symlink_to("/dev/zero")
    elif kind < 0.35:
        what, data = damaged(random, path.read_bytes())
        path.write_bytes(data)
    elif path.suffix == ".json":
        what, text = hostile_json(random, path.read_text())
        path.write_text(text, errors="replace")
    else:
        what, data = hostile_npy(random, path.read_bytes(), marker)
        path.write_bytes(data)
    return f"{path.relative_to(folder)}: {what}"


def require_one_line(bench: Bench, outcome: tiny.Outcome) -> None:
    errors = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    bench.require(outcome.returncode != 4 or len(errors) == 1, "not one line", outcome)


@pytest.mark.parametrize("case", range(SHORT))
def test_puzzle_folders(case: int, random: Random, bench: Bench, puzzles: Path, puzzle_run: Path) -> None:
    folder = Path(shutil.copytree(puzzles, bench.work / "puzzles"))
    bench.said = attack(random, folder, bench.marker)
    require_one_line(bench, bench.trm("inspect-dataset", folder, *random.choice(([], ["--json"])), named=folder))
    require_one_line(bench, bench.trm("train", "--dry-run", *overrides(folder), named=folder))
    require_one_line(bench, bench.trm("eval", puzzle_run, "--data", folder, "--policy", "act", named=folder))
    if random.random() < 0.3:
        run = bench.work / "run"
        done = bench.trm("train", *overrides(folder), f"training.run_dir={run}", "training.total_steps=3", named=folder)
        require_one_line(bench, done)


@pytest.mark.slow
@pytest.mark.parametrize("case", range(SHORT, LONG))
def test_puzzle_folders_more(case: int, random: Random, bench: Bench, puzzles: Path, puzzle_run: Path) -> None:
    test_puzzle_folders(case, random, bench, puzzles, puzzle_run)
