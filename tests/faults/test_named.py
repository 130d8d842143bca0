"""Diagnoses some of the zoo: planted faults are named first, and healthy runs raise no findings.

Faults that show in the data alone: test_before_the_fact.py; all of them: benchmarks/faults.py.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import start_server

from tests.faults import plant
from tests.faults.plant import FAULTS, PUZZLE_FAULTS
from tests.faults.zoo import PATIENCE_S, make
from trm_core.diagnose.check import Verdict
from trm_core.diagnose.diagnose import diagnose
from trm_core.diagnose.evidence import of_run
from trm_core.diagnose.registry import CHECKS

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Build the digits only once."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def forked(arguments: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Like `zoo.started`, but forked, without start-up."""
    start_server()
    process = multiprocessing.get_context("forkserver").Process(target=planted, args=(arguments, environment))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode is not None, f"{arguments} does not end"
    return process.exitcode, "see what was captured"


def planted(arguments: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    sys.exit(plant.main(arguments))


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
    run = make(fault, "severe", base, 3, tmp_path, forked)
    told = loud(run)
    assert told, "nothing was found"
    assert told[0][0] in FAULTS[fault].expected, told


@pytest.mark.parametrize(
    ("fault", "base"), [("puzzles-lr-too-high", "puzzles"), ("sixth-halts-when-some-are-right", "grids")]
)
def test_the_fault_of_puzzles_stands_first(tmp_path: Path, fault: str, base: str) -> None:
    told = loud(make(fault, "severe", base, 3, tmp_path, forked))
    assert told, "nothing was found"
    assert told[0][0] in PUZZLE_FAULTS[fault].expected, told


def test_healthy_puzzles_are_let_alone(tmp_path: Path) -> None:
    assert loud(make(None, None, "grids", 3, tmp_path, forked)) == []


@pytest.mark.parametrize("base", ["digits", "generated-recurrent"])
def test_a_healthy_run_is_let_alone(tmp_path: Path, base: str) -> None:
    told = loud(make(None, None, base, 3, tmp_path, forked))
    assert not [name for name, verdict in told if verdict is Verdict.FAIL]
    assert len(told) <= 1, told
