"""A few of the same attacks on `trm` in a separate process, for faults that running it in this process could hide."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import tiny
from amount import many
from checkpoint_attacks import attack_checkpoint
from config_attacks import billion_laughs, refused_line
from judge import Bench

SHORT, LONG = 1, many(4)


def attack_config(random: Random, bench: Bench, run: Path) -> None:
    text = (run / "config.yaml").read_text()
    bench.said, data, _ = random.choice((billion_laughs, refused_line))(random, bench, text)
    (run / "config.yaml").write_bytes(data)
    done = bench.trm("train", "--dry-run", "--resume", run, named=run, real=True)
    bench.require(done.returncode == 3, "is not refused", done)


@pytest.mark.parametrize("case", range(SHORT))
def test_process(case: int, random: Random, bench: Bench, run: Path) -> None:
    if case % 2 == 0:
        attack_config(random, bench, run)
        return
    bench.said = attack_checkpoint(random, bench, run).said
    bench.trm("eval", run, "--policy", "never", named=run, real=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", range(SHORT, LONG))
def test_process_more(case: int, random: Random, bench: Bench, run: Path) -> None:
    test_process(case, random, bench, run)


def test_the_judge_sees_what_goes_wrong(bench: Bench) -> None:
    """A correct command passes; a refusal must name what it is about."""
    (bench.work / "config.yaml").write_text("training: 5\n")
    bench.trm("train", "--dry-run", "--config", bench.work / "config.yaml", named="config.yaml")
    with pytest.raises(AssertionError, match="does not name other"):
        bench.trm("train", "--dry-run", "--config", bench.work / "config.yaml", named="other")
    bench.marker.mkdir()
    with pytest.raises(AssertionError, match="a payload was executed"):
        bench.trm("train", "--dry-run", *tiny.as_overrides())
