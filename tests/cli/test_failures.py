"""With --json a command that fails prints one document as well; a failed check has printed its own."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import tiny
import typer

from trm_cli import failures, main
from trm_cli.failures import failure_of
from trm_cli.processes import start_processes
from trm_core.distributed.place import Place
from trm_core.errors import CheckFailed, ConfigError, ExitCode, Interrupted, StoppedEarly
from trm_core.training import launch
from trm_core.training.launch import Ended


def document(*arguments: object, code: int) -> Any:
    done = tiny.invoke(*map(str, arguments), "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_a_mistake_is_one_document(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for command in ("eval", "export", "inspect-dataset", "checkpoints"):
        found = document(command, missing, code=4)
        assert found.keys() == {"exit_code", "status", "message", "hint"}
        assert (found["exit_code"], found["status"]) == (4, "error")
        assert str(missing) in found["message"]
    found = document("train", "--dry-run", "training.base_lr=fast", code=3)
    assert "training.base_lr" in found["message"]


def test_options_that_a_command_finds_wrong_are_a_document() -> None:
    for price, said in (("cheap", "takes numbers"), ("0.1,-1", "must be above 0")):
        found = document("eval", "--price", price, code=2)
        assert (found["exit_code"], found["status"]) == (2, "error")
        assert said in found["message"]
    done = tiny.invoke("eval", "--price", "cheap")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_run_that_stops_early_says_so(capsule_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    training = {"run_dir": run, "total_steps": 6, "stop_at_step": 3}
    found = document("train", *tiny.as_overrides(data={"path": capsule_file}, training=training), code=75)
    assert (found["exit_code"], found["status"]) == (75, "stopped")
    assert str(run) in found["message"] + found["hint"]
    finished = document("train", "--resume", run, "training.stop_at_step=null", code=0)
    assert "policies" in finished or "scores" in finished, finished.keys()


def test_a_check_that_fails_has_printed_its_document(trained_run: Path) -> None:
    found = document("eval", trained_run, "--policy", "never", "--min-accuracy", "1", code=1)
    assert "exit_code" not in found
    # The count is of one command: the next one in the same process fails with a document of its own.
    assert document("eval", trained_run / "nothing", code=4)["status"] == "error"


@pytest.mark.parametrize(("elsewhere", "rank", "told"), [
    (None, 0, True), (None, 1, False),  # of all alike, as each finds it
    (False, 1, True), (True, 0, False), (True, 1, False),  # agreed on: whoever has it first
])  # fmt: skip
def test_one_of_several_processes_tells_it(
    monkeypatch: pytest.MonkeyPatch, elsewhere: bool | None, rank: int, told: bool
) -> None:
    def fail() -> None:
        error = ConfigError("no such split")
        error.told_by_another = elsewhere
        raise error

    monkeypatch.setattr(main, "this_process", lambda: Place(rank=rank, world_size=2))
    said: list[str] = []
    monkeypatch.setattr(failures, "error", lambda message, **_: said.append(message))
    with pytest.raises(typer.Exit) as end:
        main.guarded(fail)()
    assert end.value.exit_code == 3
    assert said == ["no such split"] * told


RESULT = {"accuracy": 0.1, "name": "\udcff", "best": None}


@pytest.mark.parametrize(("ended", "found"), [
    (Ended(0, None, json.dumps(RESULT)), RESULT),
    (Ended(6, "process 1 was killed by SIGKILL", json.dumps(RESULT)), RESULT),  # at its very end: it has been printed
    (Ended(6, "process 0 was killed by SIGKILL", '{"accuracy": 0.1, '), {"exit_code": 6, "status": "error"}),
    (Ended(6, "process 0 was killed by SIGKILL"), {"message": "process 0 was killed by SIGKILL", "hint": "go on"}),
    (Ended(75), {"exit_code": 75, "status": "stopped"}),  # by a signal before anything could handle it
    (Ended(4), {"exit_code": 4, "status": "error", "hint": None}),
])  # fmt: skip
def test_processes_print_one_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ended: Ended, found: dict[str, Any]
) -> None:
    monkeypatch.setattr(launch, "launch", lambda *given, **named: ended)
    monkeypatch.setattr(sys, "argv", ["trm", "eval", "--nproc", "2", "--json"])
    with pytest.raises(typer.Exit) if ended.code else nullcontext() as end:
        start_processes(2, json=True, hint="go on")
    assert end is None or end.value.exit_code == ended.code
    printed = json.loads(capsys.readouterr().out)
    assert {name: printed[name] for name in found} == found


def test_without_json_stdout_stays_empty(tmp_path: Path) -> None:
    done = tiny.invoke("eval", str(tmp_path / "missing"))
    assert (done.returncode, done.stdout) == (4, "")


@pytest.mark.parametrize(
    ("exception", "code", "label"),
    [
        (ConfigError("wrong", hint="right"), ExitCode.CONFIG, "error"),
        (CheckFailed("below"), ExitCode.CHECK_FAILED, "failed"),
        (StoppedEarly("at 3"), ExitCode.STOPPED_EARLY, "stopped"),
        (Interrupted("at 3"), ExitCode.INTERRUPTED, "stopped"),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "stopped"),
        (MemoryError(), ExitCode.RESOURCES, "error"),
        (OSError(errno.ENOSPC, "No space left on device"), ExitCode.RESOURCES, "error"),
        (OSError("cannot write (errno = 28, error message = 'No space')"), ExitCode.RESOURCES, "error"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), ExitCode.USAGE, "error"),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected"), ExitCode.RESOURCES, "error"),
        (OSError(errno.ESTALE, "Stale file handle", "/nfs/x"), ExitCode.RESOURCES, "error"),
        (ZeroDivisionError("division by zero\nand more"), ExitCode.INTERNAL, "error"),
    ],
)
def test_codes_and_labels(exception: BaseException, code: ExitCode, label: str) -> None:
    failure = failure_of(exception)
    assert (failure.code, failure.label) == (code, label)
    assert "and more" not in failure.message


@pytest.mark.parametrize("words", [["eval"], ["diagnose", "all"], ["train", "--resume"]])
def test_a_config_that_another_version_recorded_is_no_mistake_of_the_user(
    trained_run: Path, tmp_path: Path, words: list[str]
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("loss_weights:\n", "loss_weights:\n  coming_loss: 0.0\n"))
    failure = document(*words, run, code=3)
    assert "loss_weights.coming_loss: is not a known key" in failure["message"]
    assert "by another version of trm" in failure["hint"]


def test_a_mistake_on_the_command_line_of_a_resume_is_one_of_the_user(trained_run: Path) -> None:
    failure = document("train", "--resume", trained_run, "training.totl_steps=50", code=3)
    assert "training.totl_steps" in failure["message"]
    assert "another version" not in (failure["hint"] or "")
