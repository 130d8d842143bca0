"""Read the small files of a run directory, tolerating whatever they hold. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trm_core.diagnose.small_files import record_of, tail_of
from trm_core.training import run_dir

_LOG_BYTES = 1 << 20  # the end of log.txt that is read


@dataclass(frozen=True)
class RunFacts:
    """The contents of the small files; a missing or unreadable file counts as empty."""

    path: Path
    status: Mapping[str, Any]
    dataset: Mapping[str, Any]
    environment: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    log: tuple[str, ...]  # lines, with their times

    @property
    def starts(self) -> list[Mapping[str, Any]]:
        """The entry in environment.json for each start of this run; an entry of unexpected form is empty."""
        starts = self.environment.get("starts")
        return [start if isinstance(start, dict) else {} for start in starts] if isinstance(starts, list) else []

    @property
    def last_start(self) -> Mapping[str, Any]:
        """The newest entry of `starts`; empty if there is none."""
        return self.starts[-1] if self.starts else {}

    @property
    def log_of_last_start(self) -> tuple[str, ...]:
        """The log since the last start; problems that earlier ones logged may have been fixed since."""
        begun = [number for number, line in enumerate(self.log) if "run directory: " in line]
        return self.log[begun[-1] :] if begun else self.log

    @property
    def hardware(self) -> Mapping[str, Any]:
        """The hardware of the last start."""
        found = self.last_start.get("hardware")
        return found if isinstance(found, dict) else {}

    @property
    def processes(self) -> int:
        """How many processes trained together in the last start; 1 if not recorded."""
        found = self.last_start.get("processes")
        return found if isinstance(found, int) and found > 0 else 1

    @property
    def was_killed(self) -> bool:
        """Whether status.json says that the run is going on although its process is gone."""
        pid = self.status.get("pid")
        return self.status.get("state") == "running" and isinstance(pid, int) and not self._lives(pid)

    def _lives(self, pid: int) -> bool:
        host = self.hardware.get("hostname")
        elsewhere = isinstance(host, str) and host != platform.node()  # another host's processes are not visible here
        return elsewhere or os.path.exists(f"/proc/{pid}") or not os.path.isdir("/proc")


def read_run_facts(path: Path) -> RunFacts:
    """Read them from a run directory."""
    return RunFacts(
        path,
        status=record_of(path / run_dir.STATUS),
        dataset=record_of(path / run_dir.DATASET),
        environment=record_of(path / run_dir.ENVIRONMENT),
        evaluation=record_of(path / run_dir.EVALUATION),
        log=_log(path / run_dir.LOG),
    )


def _log(path: Path) -> tuple[str, ...]:
    try:
        return tuple(tail_of(path, _LOG_BYTES).decode("utf-8", "replace").splitlines())
    except OSError:
        return ()
