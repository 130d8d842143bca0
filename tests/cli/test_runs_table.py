"""`trm runs`: many runs in one table, whatever state their folders are in."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

from trm_cli import console
from trm_cli import runs as command
from trm_core import overview
from trm_core.config import dump_config, load_config_dict

GONE = 2**22 + 1  # no process has this number


def write_run(folder: Path, *overrides: str, age: int = 0, accuracy: float | None = 0.75, **status: Any) -> Path:
    """A run directory as one that is finished leaves it, with fewer files. age: seconds."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(load_config_dict({}, overrides).config))
    start = {"time": "2026-01-01T10:00:00+0000", "hardware": {"hostname": platform.node()}}
    (folder / "environment.json").write_text(json.dumps({"starts": [start]}))
    known = {"state": "done", "step": 9, "total_steps": 9, "exit_code": 0, "time": "2026-01-01T12:30:00+0200"}
    (folder / "status.json").write_text(json.dumps({**known, "pid": GONE, **status}))
    if accuracy is not None:
        score = {"policy": "learned", "accuracy": accuracy, "low": 0.5, "high": 0.9, "opened": 1.25, "steps": 2.5}
        (folder / "evaluation.json").write_text(json.dumps({"step": 9, "puzzles": False, "scores": [score]}))
    os.utime(folder / "status.json", (1e9 - age, 1e9 - age))
    return folder


def document(*arguments: object) -> dict[str, Any]:
    done = tiny.invoke("runs", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def names(found: dict[str, Any]) -> list[str]:
    return [Path(run["run"]).name for run in found["runs"]]


def table(*arguments: object) -> list[list[str]]:
    """Words of each line on stdout."""
    done = tiny.invoke("runs", *arguments)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_a_run_that_was_trained(trained_run: Path) -> None:
    (run,) = document(trained_run)["runs"]
    score = json.loads((trained_run / "evaluation.json").read_text())["scores"][0]
    assert run["run"] == str(trained_run)
    assert (run["state"], run["step"], run["total_steps"], run["exit_code"]) == ("done", 60, 60, 0)
    assert run["evaluated"] == {
        "step": 60, **{name: score[name] for name in ("policy", "accuracy", "low", "high", "opened", "steps")}
    }  # fmt: skip
    assert 0 <= run["minutes"] < 10
    assert (run["faults"], run["config"], run["puzzles"]) == ([], {}, False)


def test_puzzles_are_right_as_a_whole(sudoku_run: Path) -> None:
    found = document(sudoku_run)["runs"][0]
    score = json.loads((sudoku_run / "evaluation.json").read_text())["scores"][0]
    assert score["exact_accuracy"] < score["accuracy"]
    evaluated = found["evaluated"]
    assert [evaluated[name] for name in ("accuracy", "low", "high")] == [
        score[name] for name in ("exact_accuracy", "exact_low", "exact_high")
    ]
    assert evaluated["policy"] == "act"
    assert "as a whole" in tiny.invoke("runs", sudoku_run).stdout


def test_the_newest_first_or_the_best(tmp_path: Path) -> None:
    for name, age, accuracy in (("old", 30, 0.9), ("new", 10, 0.3), ("middle", 20, 0.6), ("none", 5, None)):
        write_run(tmp_path / name, age=age, accuracy=accuracy)
    assert names(document(tmp_path)) == ["none", "new", "middle", "old"]
    assert names(document(tmp_path, "--sort", "accuracy")) == ["old", "middle", "new", "none"]
    assert tiny.invoke("runs", tmp_path, "--sort", "worst").returncode == 2


def test_what_is_shown_of_a_run(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "training.seed=3", age=1)
    write_run(tmp_path / "b", "training.seed=4", "dqn.gamma=0.5", age=2)
    title, columns, first, second = table(tmp_path)
    assert " ".join(title) == "2 runs; accuracy and cost of learned"
    assert " ".join(columns) == "run state trained min accuracy % 95 % opened steps training.seed dqn.gamma"
    assert first[1:] == ["done", "9/9", "30.0", "75.00", "50.0-90.0", "1.25", "2.50", "3", "0.99"]
    assert second[-2:] == ["4", "0.5"]


def test_only_the_keys_that_differ(tmp_path: Path) -> None:
    """Also where they lie differs, and is no reason for anything."""
    for seed in range(3):
        path = tmp_path / str(seed)
        write_run(path, f"training.seed={seed}", f"dqn.gamma={0.9 + seed // 2 / 100}", f"training.run_dir={path}")
    found = document(tmp_path)
    assert found["differ"] == ["training.seed", "dqn.gamma"], "what has most values first"
    assert {run["config"]["training.seed"]: run["config"]["dqn.gamma"] for run in found["runs"]} == {
        0: 0.9, 1: 0.9, 2: 0.91
    }  # fmt: skip


def test_many_keys_and_narrow_terminals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "a", age=1)
    odd = ["arch.hidden_size=64", "arch.num_heads=2", "training.seed=9", "training.base_lr=1e-3", "dqn.gamma=0.9"]
    odd += ["dqn.batch_size=7", "training.ema_decay=0.5", "training.global_batch_size=3"]
    write_run(tmp_path / "b", *odd, age=2)
    lines = tiny.invoke("runs", tmp_path).stdout.splitlines()
    shown = [word for word in lines[1].split() if "." in word]
    assert len(shown) == command.MOST_KEYS
    also = lines[-1].removeprefix("they also differ in ").split(", ")
    assert sorted(shown + also) == sorted(setting.partition("=")[0] for setting in odd)
    monkeypatch.setattr(console, "is_terminal", lambda stream: stream is sys.stdout)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    narrow = tiny.invoke("runs", ".").stdout
    assert "what they differ in" in narrow
    assert max(map(len, narrow.splitlines()[:-1])) <= 100
    assert "they also differ in" in narrow


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({"state": "stopped", "exit_code": 75}, "stopped"),
        ({"state": "interrupted", "exit_code": 130}, "interrupted"),
        ({"state": "running", "exit_code": None}, "killed"),
        ({"state": "running", "exit_code": None, "pid": os.getpid()}, "running"),
        ({"state": "failed", "exit_code": 5, "error": "loss is NaN \x1b[31m"}, "diverged"),
        ({"state": "failed", "exit_code": 6, "error": "out of memory"}, "failed"),
        ({"state": ["done"]}, "unknown"),
    ],
)
def test_states(tmp_path: Path, status: dict[str, Any], state: str) -> None:
    run = write_run(tmp_path / "run", **status)
    assert document(run)["runs"][0]["state"] == state
    shown = tiny.invoke("runs", run).stdout
    assert state in shown.splitlines()[2].split()
    assert "\x1b" not in shown
    if "error" in status:
        assert f"{run}: {status['error'][:5]}" in shown


def test_a_run_elsewhere_is_not_called_killed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", state="running")
    start = {"time": "2026-01-01T10:00:00+0000", "hardware": {"hostname": "elsewhere"}}
    (run / "environment.json").write_text(json.dumps({"starts": [start]}))
    assert document(run)["runs"][0]["state"] == "running"


def test_a_run_that_is_not_evaluated_shows_the_best_while_training(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", accuracy=None, state="stopped", step=30)
    lines = [{"step": step, "eval/accuracy": accuracy, "eval/opened": 2.0} for step, accuracy in ((10, 0.4), (20, 0.6))]
    torn = ['{"step": 30, "eval/accuracy": 0.9', '{"step": 30, "eval/accuracy": 7}', "[" * 9999 + "eval/accuracy"]
    (run / "metrics.jsonl").write_text("\n".join([*map(json.dumps, lines), '{"step": 25}', *torn]))
    found = document(run)["runs"][0]
    assert found["evaluated"] is None
    assert (found["best_logged"]["step"], found["best_logged"]["accuracy"]) == (20, 0.6)
    shown = tiny.invoke("runs", run).stdout
    assert "~60.00" in shown
    assert "not evaluated yet" in shown


def test_scores_of_an_earlier_step_are_called_that(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", step=20)
    assert f"{run}: evaluated at step 9" in tiny.invoke("runs", run).stdout


def test_minutes_are_known_of_one_start(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    start = json.loads((run / "environment.json").read_text())["starts"][0]
    for starts, minutes in (
        ([start], 30.0),
        ([start, start], None),
        ([{"time": "2026-01-01T10:00:00"}], None),
        ([{"time": 3}], None),
        ([{**start, "time": "2027-01-01T10:00:00+0000"}], None),
        ("x", None),
    ):
        (run / "environment.json").write_text(json.dumps({"starts": starts}))
        assert document(run)["runs"][0]["minutes"] == minutes, starts


def hostile_folders(root: Path) -> dict[str, str]:
    """Broken runs, and what has to be said of each."""
    for name in ("bytes", "extends", "pipes", "unknown-key"):
        write_run(root / name)
    (root / "bytes" / "status.json").write_bytes(b"\xff\0")
    (root / "extends" / "config.yaml").write_text(f"extends: {root / 'pipe'}\n")
    os.mkfifo(root / "pipe")
    for name in ("config.yaml", "evaluation.json", "environment.json", "metrics.jsonl"):
        (root / "pipes" / name).unlink(missing_ok=True)
        os.mkfifo(root / "pipes" / name)
    (root / "unknown-key" / "config.yaml").write_text("training:\n  sed: 3\n")
    (root / "loop").mkdir()
    (root / "loop" / "status.json").symlink_to("status.json")
    numbers = {"step": 10**400, "total_steps": [], "exit_code": -1, "time": None}
    numbers_run = write_run(root / "numbers", **numbers)
    (numbers_run / "evaluation.json").write_text(json.dumps({"scores": [{"accuracy": 10**400}], "puzzles": 3}))
    (root / "nothing").symlink_to(root / "nowhere")
    (root / "no run").mkdir()
    return {
        "bytes": "status.json is missing or damaged",
        "extends": "cannot extend another",
        "pipes": "config.yaml: is missing or not a file",
        "unknown-key": "training.sed",
        "loop": "status.json is missing or damaged",
        "numbers": "evaluation.json is damaged",
    }


def test_broken_runs_are_lines_like_the_others(tmp_path: Path) -> None:
    said = hostile_folders(tmp_path)
    write_run(tmp_path / "whole", "training.seed=5")
    done = tiny.run_trm("runs", ".", cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    found = document(tmp_path)
    assert sorted(names(found)) == sorted([*said, "whole"])
    faults = {Path(run["run"]).name: run["faults"] for run in found["runs"]}
    assert faults.pop("whole") == []
    for name, words in said.items():
        assert any(words in fault for fault in faults[name]), (name, faults[name])
        assert any(line.startswith(f"{name}") and words in line for line in done.stdout.splitlines()), name


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """JSON has an escape for half a character."""
    run = write_run(tmp_path / os.fsdecode(b"odd\xff"), state="failed", error="\ud800")
    assert Path(document(tmp_path)["runs"][0]["run"]) == run
    assert "odd\\udcff" in tiny.invoke("runs", tmp_path).stdout


def test_folders_and_runs_may_be_mixed(tmp_path: Path) -> None:
    for name in ("sweep/0", "sweep/1", "other"):
        write_run(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    found = document(tmp_path / "sweep", tmp_path / "other", tmp_path / "sweep/1/")
    assert sorted(names(found)) == ["0", "1", "other"]
    done = tiny.invoke("runs", tmp_path / "sweep", tmp_path / "notes.txt", "--json")
    assert len(json.loads(done.stdout)["runs"]) == 2
    assert "notes.txt is not a folder" in done.stderr


def test_no_run_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in ([], ["."], ["nowhere", "."]):
        done = tiny.invoke("runs", *arguments)
        assert (done.returncode, done.stdout) == (4, ""), arguments
        assert "hint: " in done.stderr


def test_a_folder_that_may_not_be_looked_into_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    listdir = os.listdir

    def refused(path: Any) -> list[str]:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(overview.os, "listdir", refused)
    write_run(tmp_path / "open")
    assert sorted(names(document(tmp_path))) == ["closed", "open"]


def test_it_needs_neither_torch_nor_numpy(trained_run: Path) -> None:
    code = (
        "import sys, trm_cli.main\n"
        "try: trm_cli.main.app(['runs', sys.argv[1]])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'numpy', 'h5py'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code, trained_run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_newest_is_what_other_commands_take(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, time in (("a", 100), ("b", 300), ("c", 200)):
        shutil.copytree(trained_run, tmp_path / "runs" / name, ignore=shutil.ignore_patterns("*.safetensors"))
        os.utime(tmp_path / "runs" / name / "status.json", (time, time))
    monkeypatch.chdir(tmp_path)
    assert names(document()) == ["b", "c", "a"]
    assert tiny.invoke("checkpoints").stdout.startswith("runs/b")


def test_names_that_stdout_cannot_encode_are_escaped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "größe")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(tiny.ROOT)}
    printed = {}
    for flags in ((), ("--json",)):
        done = subprocess.run(
            [sys.executable, "-m", "trm_cli.main", "runs", run, *flags],
            capture_output=True,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        printed[flags] = done.stdout.decode("ascii")
    assert r"gr\xf6\xdfe" in printed[()]
    assert json.loads(printed[("--json",)])["runs"][0]["run"] == str(run)
