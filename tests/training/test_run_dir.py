"""status.json while a run is going on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trm_core.errors import ResourceError
from trm_core.training import run_dir


def test_the_status_follows_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(run_dir.time, "monotonic", lambda: now)
    update = run_dir.keep_status(tmp_path, 50, seconds=5.0)
    written = []
    for step in range(1, 12):
        update(step)
        written.append(json.loads((tmp_path / "status.json").read_text())["step"])
        now += 1.0
    assert written == [1, 1, 1, 1, 1, 6, 6, 6, 6, 6, 11]


def test_a_full_disk_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: Path, *arguments: object) -> None:
        raise ResourceError("no space")

    update = run_dir.keep_status(tmp_path, 50)
    monkeypatch.setattr(run_dir, "write_status", refuse)
    update(1)
    assert not (tmp_path / "status.json").exists()
