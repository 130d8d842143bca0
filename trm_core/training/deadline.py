"""When this process must stop: before its SLURM job ends, or at a limit of the config."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping

from trm_core.config.schema import TrainingConfig

_PATIENCE_S = 10.0


def deadline(training: TrainingConfig, environment: Mapping[str, str] = os.environ) -> tuple[float | None, str]:
    """(seconds since the epoch at which to save and stop, or None; why)."""
    ends = job_end(environment)
    limits = {}
    if ends is not None:
        why, margin = f"before SLURM job {environment['SLURM_JOB_ID']} ends", training.time_margin
        # A job shorter than the margin would stop before its first step, and be requeued forever.
        half = max(0.0, ends - time.time()) / 2
        if margin > half:
            why += f" (halfway through the time left, as training.time_margin={margin:g} s is longer than that)"
        limits[why] = ends - min(margin, half)
    if training.time_limit is not None:
        limits["when training.time_limit is reached"] = time.time() + 3600 * training.time_limit
    if not limits:
        return None, "no time limit is known"
    why = min(limits, key=lambda name: limits[name])
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(limits[why]))
    return limits[why], f"will save and stop at {at}, {why}"


def job_end(environment: Mapping[str, str]) -> float | None:
    """The end of this SLURM job: from the environment if SLURM is new enough to set it, else from scontrol."""
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        return None
    if environment.get("SLURM_JOB_END_TIME", "").isdigit():
        return float(environment["SLURM_JOB_END_TIME"])
    command = ["scontrol", "show", "job", job, "--oneliner"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\bEndTime=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\b", asked.stdout)
    return None if found is None else time.mktime(time.strptime(found.group(1), "%Y-%m-%dT%H:%M:%S"))
