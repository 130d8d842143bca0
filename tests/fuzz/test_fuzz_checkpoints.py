"""Damaged and hostile checkpoints: what is loaded equals some intact checkpoint, or it is refused with a message."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random

import pytest
from amount import many
from checkpoint_attacks import attack_checkpoint, files_of
from intact_run import RESUMED_STEPS, Intact
from judge import Bench

SHORT, LONG = 20, many(100)


@pytest.mark.parametrize("case", range(SHORT))
def test_checkpoint(case: int, random: Random, bench: Bench, run: Path, intact: Intact) -> None:
    attack = attack_checkpoint(random, bench, run)
    bench.said = attack.said
    listed = bench.trm("checkpoints", run, "--json", named=run)
    if not attack.forged and listed.returncode in (0, 1):
        for one in json.loads(listed.stdout)["checkpoints"]:
            whole = one["fault"] is not None or is_intact(Path(one["path"]), intact)
            bench.require(whole, f"{one['path']} passes for whole", listed)
    if random.random() < 0.6:
        evaluate(bench, run, intact, attack.forged)
    else:
        resume(bench, run, intact, attack.forged)


@pytest.mark.slow
@pytest.mark.parametrize("case", range(SHORT, LONG))
def test_checkpoint_more(case: int, random: Random, bench: Bench, run: Path, intact: Intact) -> None:
    test_checkpoint(case, random, bench, run, intact)


def is_intact(folder: Path, intact: Intact) -> bool:
    """Whether every file equals, byte for byte, that of one of the checkpoints as they were written."""
    return any(
        all((folder / path.name).is_file() and (folder / path.name).read_bytes() == path.read_bytes() for path in files)
        for files in ([p for p in files_of(one) if p.name != "manifest.json"] for one in intact.checkpoints.values())
    )


def evaluate(bench: Bench, run: Path, intact: Intact, forged: bool) -> None:
    newest = max((run / "checkpoints").glob("step_*"))
    done = bench.trm("eval", run, "--json", named=run)
    if done.returncode or forged:
        return
    record = {**json.loads(done.stdout), "run": None}
    bench.require(record == intact.evaluations.get(record["step"]), "evaluates what no checkpoint holds", done)
    # A folder without a manifest is not a checkpoint: saving writes it last, pruning deletes it first.
    if (
        record["step"] != max(intact.checkpoints)
        and (newest / "manifest.json").is_file()
        and not is_intact(newest, intact)
    ):
        bench.require("going back one checkpoint" in done.stderr, "goes back without a word", done)


def resume(bench: Bench, run: Path, intact: Intact, forged: bool) -> None:
    """Train two steps past the end of the run; the weights must equal those of the intact checkpoint resumed as far."""
    done = bench.trm("train", "--resume", run, f"training.total_steps={RESUMED_STEPS}", named=run)
    if done.returncode or forged:
        return
    gone_on = re.findall(r"resuming from step_(\d+)", done.stderr)
    bench.require(len(gone_on) == 1, "does not say where it goes on", done)
    expected = intact.resumed[int(gone_on[0])]
    for path in files_of(expected):
        if path.suffix == ".safetensors":
            same = (run / "checkpoints" / expected.name / path.name).read_bytes() == path.read_bytes()
            bench.require(same, f"{path.name} is not what training on gives", done)
