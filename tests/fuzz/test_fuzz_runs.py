"""Damaged and hostile run folders: every file beside the checkpoints, links to these, and odd neighbours of theirs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from amount import many
from bytes_damage import damaged
from hostile_json import HOSTILE, hostile_json
from intact_run import RESUMED_STEPS
from judge import Bench

SHORT, LONG = 15, many(75)
NAMES = ("step_²", "step_٣", "step_" + "9" * 200, "step_-1", "step_", "step_60", "step_00000061", "step_1e3", ".step_x")
POINTERS = (
    *("step_²\n", "../../outside\n", "/etc\n", "step_00000060/../../..\n", "step_" + "9" * 5000, "\0", "", "step_7\n"),
    "best\n",
)

Attack = Callable[[Random, Bench, Path], str]


def files_of(run: Path) -> list[Path]:
    return sorted(path for path in run.iterdir() if path.is_file())


def damage(random: Random, bench: Bench, run: Path) -> str:
    path = random.choice([*files_of(run), run / "config.yaml", run / "checkpoints" / "best"])
    what, data = damaged(random, path.read_bytes())
    path.write_bytes(data)
    return f"{path.name} {what}"


def hostile(random: Random, bench: Bench, run: Path) -> str:
    path = random.choice([path for path in files_of(run) if path.suffix == ".json"])
    what, text = hostile_json(random, path.read_text())
    path.write_text(text, encoding="utf-8", errors="replace")
    return f"{path.name}: {what}"


def hostile_lines(random: Random, bench: Bench, run: Path) -> str:
    """A hostile line in metrics.jsonl, which a resumed run reads."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    place = random.randrange(len(lines))
    what, lines[place] = hostile_json(random, random.choice((lines[place], '{"step": 1}')))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace")
    return f"{path.name}, line {place}: {what}"


def another_kind(random: Random, bench: Bench, run: Path) -> str:
    """A folder, a pipe or a link in place of a file; nothing outside may be changed through it."""
    kind = random.choice(("missing", "folder", "pipe", "outside", "nowhere", "loop"))
    path = random.choice([*files_of(run), run / "checkpoints" / "best", run / "checkpoints"])
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "missing":
        targets = {"outside": bench.outside / "secret", "nowhere": bench.outside / "nowhere", "loop": path}
        path.symlink_to(targets[kind])
    return f"{path.name}: {kind}"


def pointer(random: Random, bench: Bench, run: Path) -> str:
    text = random.choice((*POINTERS, *HOSTILE))
    (run / "checkpoints" / "best").write_text(text, encoding="utf-8", errors="replace")
    return f"best says {text[:30]!r}"


def neighbours(random: Random, bench: Bench, run: Path) -> str:
    """Folders that look like checkpoints."""
    newest = max((run / "checkpoints").glob("step_*"))
    name = random.choice(NAMES)
    kind = random.choice(("copy", "copy", "link outside", "file"))
    path = run / "checkpoints" / name
    if kind == "copy":
        shutil.copytree(newest, path)
    elif kind == "file":
        path.write_text("x")
    else:
        away = shutil.copytree(newest, bench.outside / "theirs")
        if random.random() < 0.5:  # damaged, so that resuming would move it out of the way
            (away / "model.safetensors").write_bytes(b"x")
        path.symlink_to(away)
    return f"{name}: {kind}"


ATTACKS: tuple[Attack, ...] = (damage, damage, hostile, hostile_lines, another_kind, another_kind, pointer, neighbours)


@pytest.mark.parametrize("case", range(SHORT))
def test_run_folder(case: int, random: Random, bench: Bench, run: Path) -> None:
    bench.said = random.choice(ATTACKS)(random, bench, run)
    bench.trm("checkpoints", run, named=run)
    listed = bench.trm("runs", run, "--json")
    bench.require(listed.returncode == 0 and len(json.loads(listed.stdout)["runs"]) == 1, "not listed", listed)
    more = f"training.total_steps={RESUMED_STEPS}"
    commands: tuple[list[str | Path], ...] = (
        ["eval", run],
        ["eval", run, "--checkpoint", "best"],
        ["train", "--resume", run, "--dry-run"],
        ["train", "--resume", run, more],
        ["train", "--resume", run, more],
        ["train", "--resume", "auto", "--config", run / "config.yaml", f"training.run_dir={run}", more],
    )
    bench.trm(*random.choice(commands), named=run)


@pytest.mark.slow
@pytest.mark.parametrize("case", range(SHORT, LONG))
def test_run_folder_more(case: int, random: Random, bench: Bench, run: Path) -> None:
    test_run_folder(case, random, bench, run)
