"""The zoo itself: planted faults are present and as severe as stated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.faults.bases import BASES
from tests.faults.healthy import HEALTHY
from tests.faults.plan import SEVERITIES, begin
from tests.faults.plant import FAULTS, PUZZLE_BASES, PUZZLE_FAULTS, overrides, planned
from tests.faults.zoo import Entry, bases_of, entries, make
from trm_core.config import load_config_dict


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Build the digits into a folder of these tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_there_are_enough_of_both_and_no_run_has_the_place_of_another() -> None:
    folders = [entry.folder for entry in entries([], [0, 1])]
    assert len(FAULTS) >= 25
    assert len(HEALTHY) >= 10
    faulty = len(SEVERITIES) * sum(len(bases_of(fault)) for fault in (*FAULTS, *PUZZLE_FAULTS))
    assert len(set(folders)) == len(folders) == 2 * (len(HEALTHY) + len(PUZZLE_BASES) + faulty)


@pytest.mark.parametrize(
    ("fault", "base"), [(fault, base) for fault in (*FAULTS, *PUZZLE_FAULTS) for base in bases_of(fault)]
)
def test_every_plan_is_a_config_that_loads(fault: str, base: str) -> None:
    for severity in SEVERITIES:
        assert load_config_dict({}, overrides(planned(fault, severity, base, 0).settings)).config


@pytest.mark.parametrize("base", BASES)
def test_more_severe_is_more(base: str) -> None:
    shares = []
    for severity in SEVERITIES:
        labels = planned("labels-constant", severity, base, 0).data.splits["train"]["labels"]
        shares.append(float(np.mean(labels == 0)))
    assert shares == sorted(shares)
    assert 0.98 < shares[-1] < 1.0


def test_nothing_planted_is_the_base_itself() -> None:
    base = BASES["generated"]
    plan = begin(base, 0, 3)
    assert plan.settings == {**base.settings, "training.seed": 3}
    assert plan.patches == plan.after == []


@pytest.mark.slow
def test_a_run_is_made_once(tmp_path: Path) -> None:
    run = make("ranks-diverged", "severe", "generated", 0, tmp_path)
    status = run / "status.json"
    assert json.loads(status.read_text())["state"] == "failed"
    assert run == tmp_path / Entry("ranks-diverged", "severe", "generated", 0).folder
    before = status.stat().st_mtime_ns
    make("ranks-diverged", "severe", "generated", 0, tmp_path)
    assert status.stat().st_mtime_ns == before
