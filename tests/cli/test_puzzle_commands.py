"""What the commands say of puzzles: in the words of puzzles, without prices and capsules."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny
from tiny_puzzles import ARCH, write_puzzles

# Words that somebody who trains on Sudokus has never heard of.
FOREIGN = re.compile(r"capsule|sketch|children|checksum|expand|opened|spent|price", re.IGNORECASE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_puzzles(tmp_path_factory.mktemp("commands") / "p", groups=6, copies=3, examples=2, identifiers=4)


@pytest.fixture(scope="module")
def overrides(folder: Path) -> list[str]:
    return tiny.as_overrides(arch=ARCH, data={"path": folder}, training={"eval_interval": 5})


@pytest.fixture(scope="module")
def run(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    done = tiny.invoke("train", *overrides, f"training.run_dir={path}")
    assert done.returncode == 0, done.stderr
    assert not FOREIGN.search(done.stdout), done.stdout
    assert re.search(r"step 10: accuracy 0\.\d+, exact 0\.\d+", done.stderr)
    assert re.search(r"step 12: act accuracy 0\.\d+, exact 0\.\d+", done.stderr)
    return path


def test_a_dry_run_says_what_the_puzzles_are(overrides: list[str]) -> None:
    done = tiny.invoke("train", *overrides, "--dry-run")
    assert done.returncode == 0, done.stderr
    asked = ("enable_capsule_expansion", "q_head_num_actions: 3")  # what the checklist of features asks of every run
    rest = [line for line in done.stdout.splitlines() if not any(name in line for name in asked)]
    assert not FOREIGN.search("\n".join(rest)), done.stdout
    said = tiny.invoke("train", *overrides, "--dry-run", "--json")
    shapes = json.loads(said.stdout)["shapes"]
    assert (shapes["tokens S"], shapes["vocabulary V"], shapes["puzzle identifiers"]) == (6, 5, 4)
    assert shapes["train rows"] == 36
    assert shapes["steps per epoch"] == 1.5, "six groups, of each one puzzle of two examples, in batches of 8"
    features = {each["feature"]: each["on"] for each in json.loads(said.stdout)["features"]}
    why = {each["feature"]: each["reason"] for each in json.loads(said.stdout)["features"]}
    assert [features[name] for name in asked] == [False, False]
    assert why["enable_capsule_expansion"] == "auto: a puzzle has nothing to open"
    assert features["puzzle_embeddings"]
    assert features["rope"]
    assert features["stablemax"]
    assert not features["enable_dqn"]
    assert not features["mixer: mlp"]


def test_an_evaluation_counts_solved_puzzles_first(run: Path) -> None:
    done = tiny.invoke("eval", run)
    assert done.returncode == 0, done.stderr
    title, columns, first, second, *_ = done.stdout.splitlines()
    assert "test split of" in title
    assert "12 puzzles, 6 tokens each, at most 3 steps" in title
    assert re.split(r"  +", columns.strip()) == ["policy", "exact %", "95 %", "cells %", "steps", "MFLOPs"]
    assert first.startswith("act ")
    assert second.startswith("never (all steps) ")
    assert not FOREIGN.search(done.stdout.replace(str(run), "")), done.stdout


def test_an_evaluation_of_other_puzzles(run: Path, tmp_path: Path) -> None:
    other = write_puzzles(tmp_path / "other", identifiers=4, seed=5)
    done = tiny.invoke("eval", run, "--data", other, "--policy", "act,threshold", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data"]["path"] == str(other)
    more = write_puzzles(tmp_path / "more", identifiers=5)
    done = tiny.invoke("eval", run, "--data", more)
    assert done.returncode == 4
    assert "has 5 puzzle identifiers" in done.stderr


def test_checkpoints_and_the_best_of_them(run: Path) -> None:
    done = tiny.invoke("checkpoints", run)
    assert done.returncode == 0, done.stderr
    assert "verifies" in done.stdout
    assert "step_00000012" in done.stdout
    assert tiny.invoke("eval", run, "--checkpoint", "best").returncode == 0


def test_an_estimate_counts_the_puzzle_embeddings(overrides: list[str]) -> None:
    def parameters(*more: str) -> int:
        done = tiny.invoke("profile", *overrides, "arch.pos_encodings=none", "--estimate", "--json", *more)
        assert done.returncode == 0, done.stderr
        return int(json.loads(done.stdout)["bytes"]["parameters"])

    # Of 4 puzzles 16 numbers of 4 bytes each; the prefix is none of the parameters.
    assert parameters() - parameters("arch.puzzle_emb_ndim=0") == 4 * 16 * 4


@pytest.mark.slow
def test_a_profile_of_puzzles(overrides: list[str]) -> None:
    done = tiny.invoke("profile", *overrides, "--no-try", "--json")
    assert done.returncode == 0, done.stderr
