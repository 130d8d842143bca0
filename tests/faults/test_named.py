"""Some of the zoo, diagnosed: planted faults stand first, healthy runs are let alone.

Those that show in the data alone: test_before_the_fact.py; all of them: benchmarks/faults.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.plant import FAULTS, PUZZLE_FAULTS
from tests.faults.zoo import make
from trm_core.diagnose.check import Verdict
from trm_core.diagnose.diagnose import diagnose
from trm_core.diagnose.evidence import of_run
from trm_core.diagnose.registry import CHECKS

pytestmark = pytest.mark.slow


def loud(run: Path) -> list[tuple[str, Verdict]]:
    found = diagnose(CHECKS, of_run(run))
    told = [(one.check.id, one.finding.verdict) for one in found]
    return [(name, verdict) for name, verdict in told if verdict in (Verdict.FAIL, Verdict.WARN)]


@pytest.mark.parametrize(
    ("fault", "base"),
    [
        ("lr-too-high", "digits"),
        ("entropy-collapse", "generated"),
        ("memory-leak", "digits"),
        ("replay-stale", "generated"),
        ("dead-layer--not-in-the-optimiser", "generated"),
    ],
)
def test_the_planted_fault_stands_first(tmp_path: Path, fault: str, base: str) -> None:
    run = make(fault, "severe", base, 3, tmp_path)
    told = loud(run)
    assert told, "nothing was found"
    assert told[0][0] in FAULTS[fault].expected, told


@pytest.mark.parametrize(
    ("fault", "base"), [("puzzles-lr-too-high", "puzzles"), ("sixth-halts-when-some-are-right", "grids")]
)
def test_the_fault_of_puzzles_stands_first(tmp_path: Path, fault: str, base: str) -> None:
    told = loud(make(fault, "severe", base, 3, tmp_path))
    assert told, "nothing was found"
    assert told[0][0] in PUZZLE_FAULTS[fault].expected, told


def test_healthy_puzzles_are_let_alone(tmp_path: Path) -> None:
    assert loud(make(None, None, "grids", 3, tmp_path)) == []


@pytest.mark.parametrize("base", ["digits", "generated-recurrent"])
def test_a_healthy_run_is_let_alone(tmp_path: Path, base: str) -> None:
    told = loud(make(None, None, base, 3, tmp_path))
    assert not [name for name, verdict in told if verdict is Verdict.FAIL]
    assert len(told) <= 1, told
