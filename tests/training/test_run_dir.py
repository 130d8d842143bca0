"""status.json while a run is going on, and what is written in a run directory that is not ours."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from trm_core.distributed.place import Place
from trm_core.errors import DivergedError, ResourceError, StoppedEarly, UsageError
from trm_core.runs import reported
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


def test_a_line_of_the_log_is_not_worth_the_run(tmp_path: Path) -> None:
    (tmp_path / run_dir.LOG).symlink_to("/dev/full")
    said: list[str] = []
    run_dir.log_into(tmp_path, said.append)("warning: cannot save the checkpoint; training goes on")
    assert said == ["warning: cannot save the checkpoint; training goes on"]


@pytest.mark.parametrize("error", [DivergedError("the loss is not finite"), StoppedEarly("saved"), ZeroDivisionError()])
def test_a_status_that_cannot_be_written_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """What ended the run is what the user has to hear of, and its code is what a batch script acts on."""

    def refuse(*arguments: object, **more: object) -> None:
        raise ResourceError("no space")

    state = SimpleNamespace(step=3)
    run: Any = SimpleNamespace(path=tmp_path, total_steps=9, place=Place(), trainer=SimpleNamespace(state=state))
    with pytest.raises(type(error)), reported(run):  # noqa: PT012
        monkeypatch.setattr(run_dir, "write_status", refuse)
        raise error


@pytest.mark.parametrize("name", [run_dir.LOCK, run_dir.LOG, run_dir.METRICS])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_nothing_is_written_through_a_link_or_into_a_pipe(tmp_path: Path, name: str, kind: str) -> None:
    run, secret = tmp_path / "run", tmp_path / "secret"
    run.mkdir()
    secret.write_text("kept")
    if kind == "pipe":
        os.mkfifo(run / name)
    elif kind == "folder":
        (run / name).mkdir()
    else:
        (run / name).symlink_to(secret if kind == "link" else tmp_path / "nothing")
    with pytest.raises(UsageError, match=f"{name} is not a regular file"), run_dir.locked(run):
        pass
    assert secret.read_text() == "kept"
    assert not (tmp_path / "nothing").exists()


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    run_dir.write_json(tmp_path / "a.json", {"scores": [{"loss": float("nan"), "more": (float("-inf"), 1.5, None)}]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"scores": [{"loss": None, "more": [None, 1.5, None]}]}


def other_machine(step: int) -> str:
    return json.dumps({"state": "running", "step": step, "pid": 7, "host": "elsewhere"})


def test_a_run_that_another_machine_trains_without_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on sshfs, whose locks hold on one machine only."""
    steps = iter(range(100))
    monkeypatch.setattr(time, "sleep", lambda _: (tmp_path / run_dir.STATUS).write_text(other_machine(next(steps))))
    (tmp_path / run_dir.STATUS).write_text(other_machine(0))
    with (
        pytest.raises(UsageError, match="in use by process 7 on elsewhere, although its lock is free"),
        run_dir.locked(tmp_path),
    ):
        pass


def test_a_status_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / run_dir.STATUS)

    def lock() -> None:
        with run_dir.locked(tmp_path):
            pass

    locking = Thread(target=lock, daemon=True)
    locking.start()
    locking.join(10)
    assert not locking.is_alive()


def test_a_run_that_ends_meanwhile_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / run_dir.STATUS
    status.write_text(other_machine(0))
    monkeypatch.setattr(time, "sleep", lambda _: status.write_text('{"state": "done"}'))
    with run_dir.locked(tmp_path):
        assert json.loads(status.read_text()) == {"state": "done"}


@pytest.mark.parametrize(
    ("changes", "waits"),
    [({}, True), ({"state": "done"}, False), ({"host": platform.node(), "pid": 1}, False)],
)
def test_what_a_killed_run_left_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], waits: bool
) -> None:
    """Whether the process of another machine lives cannot be seen at once."""
    (tmp_path / run_dir.STATUS).write_text(json.dumps(json.loads(other_machine(0)) | changes))
    monkeypatch.setattr(run_dir, "_WATCH_S", 0.2)
    began = time.monotonic()
    with run_dir.locked(tmp_path):
        assert (time.monotonic() - began >= 0.2) == waits
