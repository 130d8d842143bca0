"""Evidence made by hand: a config from overrides, series of one value or many, a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trm_core.config import load_config_dict
from trm_core.diagnose.check import Finding
from trm_core.diagnose.data_facts import DataFacts
from trm_core.diagnose.diagnose import look
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.registry import CHECKS
from trm_core.diagnose.run_facts import RunFacts
from trm_core.diagnose.series import Metrics, Series


def made(
    overrides: Sequence[str] = (),
    series: Mapping[str, tuple[Any, Any]] | None = None,
    data: DataFacts | None = None,
    run: RunFacts | None = None,
) -> Evidence:
    """`series`: name -> (steps, a value for each or one for all)."""
    logged = {}
    for name, (at, values) in (series or {}).items():
        steps = np.asarray(at, np.int64)
        logged[name] = Series(steps, np.broadcast_to(np.asarray(values, float), steps.shape).copy())
    processes = 1 if run is None else run.processes
    return Evidence(load_config_dict({}, list(overrides)).config, Metrics(logged), data, run, processes=processes)


def run_of(log: Sequence[str] = (), **files: Mapping[str, Any]) -> RunFacts:
    """A run directory with this log; `files`: status, environment, evaluation."""
    names = ("status", "dataset", "environment", "evaluation")
    return RunFacts(Path(), *(files.get(name, {}) for name in names), log=tuple(log))


def told(name: str, evidence: Evidence) -> Finding:
    """What one check says of it."""
    return look(next(check for check in CHECKS if check.id == name), evidence).finding
