"""When a job saves and stops by itself."""

from __future__ import annotations

import time

import pytest

from trm_core.config.schema import TrainingConfig
from trm_core.training.deadline import deadline


@pytest.mark.parametrize(("left", "expected"), [(1000, 880), (240, 120), (100, 50), (10, 5), (-5, -5)])
def test_the_margin_leaves_a_short_job_half_of_its_time(
    monkeypatch: pytest.MonkeyPatch, left: int, expected: int
) -> None:
    """training.time_margin is 120 s by default: a job of 100 s would stop before its first step, each time."""
    monkeypatch.setattr(time, "time", lambda: 5000.0)
    at, why = deadline(TrainingConfig(), {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(5000 + left)})
    assert at == 5000 + expected
    assert "SLURM job 7 ends" in why
    assert ("training.time_margin=120" in why) == (left < 240)
    at, why = deadline(TrainingConfig(time_limit=0.001), {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "9000"})
    assert (at, "training.time_limit" in why) == (5003.6, True)
