"""Damaged and hostile YAML: read as it looks, or refused with the position; nothing in it is ever called."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from amount import many
from config_attacks import CHANGES, base
from judge import Bench

from trm_core.config.schema_keys import sections

SHORT, LONG = 30, many(75)


@pytest.mark.parametrize("case", range(SHORT))
def test_config(case: int, random: Random, bench: Bench, capsule_file: Path) -> None:
    bench.said, data, refused = random.choice(CHANGES)(random, bench, base(capsule_file))
    path = bench.work / "config.yaml"
    path.write_bytes(data)
    if random.random() < 0.3:  # through another file
        (bench.work / "over.yaml").write_text("extends: config.yaml\ntraining:\n  global_batch_size: 8\n")
        done = bench.trm("train", "--dry-run", "--config", bench.work / "over.yaml")
    else:
        done = bench.trm("train", "--dry-run", "--config", path)
    if refused:
        bench.require(done.returncode == 3, "is not refused", done)
    if done.returncode == 3:
        keys = [name for name in sections() if name and f"{name}." in done.stderr]
        bench.require("config.yaml" in done.stderr or bool(keys), "names neither file nor key", done)


@pytest.mark.slow
@pytest.mark.parametrize("case", range(SHORT, LONG))
def test_config_more(case: int, random: Random, bench: Bench, capsule_file: Path) -> None:
    test_config(case, random, bench, capsule_file)
