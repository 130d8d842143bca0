"""A trainer is killed with SIGKILL at random moments, most of them inside saves, and resumed with `--resume auto` until
the run is done. After every kill the checkpoints and what they promise are examined (`remains`); in the end the run
must equal the uninterrupted one bit for bit.

`TRM_TORTURE_SEED` draws other moments, `TRM_TORTURE_KILLS` sets how many each configuration gets. The moments also
depend on the clock, so a seed does not reproduce a failure; pytest keeps the run directory that shows it.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import remains
from configurations import CONFIGURATIONS, Configuration, write_data
from killed_runs import Reference, killed_until_done, uninterrupted
from nursery import Nursery
from remains import Remains

SEED = int(os.environ.get("TRM_TORTURE_SEED", "1"))
LONG = int(os.environ.get("TRM_TORTURE_KILLS", "4"))  # per configuration


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("nursery")) as started:
        yield started


def tortured(
    nursery: Nursery, configuration: Configuration, data: Path, folder: Path, least: int, draw: random.Random
) -> list[Remains]:
    """At least `least` kills, in as many runs as that takes; each run must end like the uninterrupted one."""
    reference: Reference = uninterrupted(nursery, configuration, data, folder / "reference")
    kills: list[Remains] = []
    for number in itertools.count():
        run = folder / f"run{number}"
        kills += killed_until_done(nursery, configuration, data, run, reference.seconds / 2, draw)
        mine, whole = remains.outcome(run), remains.outcome(reference.run)
        assert mine["newest"].keys() == whole["newest"].keys()
        unlike = [name for name, content in whole["newest"].items() if mine["newest"][name] != content]
        assert unlike == [], f"{run} does not end as {reference.run} does"
        assert mine == whole
        if len(kills) >= least:
            return kills
    raise AssertionError("counting does not end")


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_killed_run_ends_as_if_nobody_had(
    name: str, nursery: Nursery, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kills = tortured(nursery, CONFIGURATIONS[name], data, tmp_path, LONG, random.Random(f"{SEED} {name}"))
    with capsys.disabled():
        print(f"\n{name}: {remains.told(kills)}")
    assert sum(kill.in_save for kill in kills) > LONG // 4
