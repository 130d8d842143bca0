"""`trm train` in several real processes: exact resume, another number of processes, a lost one, signals, SLURM."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
from forked import Forked, places, run_together
from launched import find_worker

PATIENCE_S = 240
PARTS: dict[str, dict[str, Any]] = {
    "training": {"total_steps": 24, "ema_decay": 0.9, "checkpoint_interval": 100, "eval_interval": 7},
    "memory": {"enabled": "true", "capacity": 16, "num_heads": 2, "reward_threshold": -0.5},
    "arch": {"enable_concepts": "true", "num_concepts": 5},
    "dqn": {"replay": "prioritized", "buffer_min_size": 12},
}


def overrides(data: Path, run: Path, **training: Any) -> list[str]:
    sections = {**PARTS, "training": {**PARTS["training"], "run_dir": run, **training}}
    return tiny.as_overrides(data={"path": data}, **sections)


def hashes(run: Path, step: int) -> dict[str, str]:
    folder = run / "checkpoints" / f"step_{step:08d}"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


@contextmanager
def started(*arguments: str, cwd: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "trm_cli.main", "train", *map(str, arguments)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, cwd=cwd, env={**tiny.environment(cwd), **environment}, stdout=pipe, stderr=pipe, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def wait_for(run: Path, step: int, process: tiny.Process) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        path = run / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= step:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    pytest.fail("training never got that far")


def alive(process: int | None) -> bool:
    """Not gone, and not waiting for somebody to ask how it ended."""
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow(minutes=1)
def test_two_processes_stop_and_go_on_exactly(tmp_path: Path, capsule_file: Path) -> None:
    """With replay, memory, concepts, averages and a loading process; then one process goes on where two were."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = tiny.run_trm("train", *overrides(capsule_file, whole), "--nproc", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("run directory:") == 1, "one process speaks"
    stop = ["training.stop_at_step=11", "data.num_workers=1"]
    for stopped in run_together(2, "train", *overrides(capsule_file, parts), *stop, cwd=tmp_path):
        assert stopped.returncode == 75, stopped.stderr
    shutil.copytree(parts, tmp_path / "alone")
    for resumed in run_together(2, "train", "--resume", parts, "training.stop_at_step=null", cwd=tmp_path):
        assert resumed.returncode == 0, resumed.stderr
    assert len(hashes(whole, 24)) == 4, "shared weights and state, and each rank's own"
    again = tiny.invoke("eval", whole, "--json")
    assert json.loads(again.stdout) == json.loads((whole / "evaluation.json").read_text())
    assert hashes(parts, 24) == hashes(whole, 24)
    assert losses(parts) == losses(whole)

    alone = tiny.invoke("train", "--resume", tmp_path / "alone", "training.stop_at_step=null")
    assert alone.returncode == 0, alone.stderr
    assert "the run had 2 processes and has 1" in alone.stderr
    assert json.loads((tmp_path / "alone" / "status.json").read_text())["state"] == "done"


@pytest.mark.slow
def test_a_lost_process_ends_the_others_and_the_run_goes_on(tmp_path: Path, capsule_file: Path) -> None:
    run = tmp_path / "run"
    arguments = overrides(capsule_file, run, total_steps=100_000, checkpoint_interval=5)
    with closing(Forked("train", *arguments, "--nproc", "2", cwd=tmp_path)) as process:
        wait_for(run, 12, process)
        worker = find_worker(process.pid, 1)
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        began = time.monotonic()
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - began < 30
    assert process.returncode == 6, err
    assert "another process of this run is gone" in err
    assert "process 1 was killed by SIGKILL" in err
    assert "Traceback" not in err
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 6)
    last = 5 * (status["step"] // 5)
    resumed = ["--resume", "auto", f"training.stop_at_step={last + 3}"]
    first, second = run_together(2, "train", *arguments, *resumed, cwd=tmp_path)
    assert (first.returncode, second.returncode) == (75, 75), first.stderr
    assert "resuming from step_" in first.stderr


@pytest.mark.slow
def test_a_lost_first_process_leaves_a_document(tmp_path: Path, capsule_file: Path) -> None:
    run = tmp_path / "run"
    arguments = overrides(capsule_file, run, total_steps=100_000)
    with closing(Forked("train", *arguments, "--nproc", "2", "--json", cwd=tmp_path)) as process:
        wait_for(run, 3, process)
        worker = find_worker(process.pid, 0)
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 6, err
    document = json.loads(out)
    assert (document["exit_code"], document["message"]) == (6, "process 0 was killed by SIGKILL")
    assert f"--resume {run}" in document["hint"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGHUP, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_signals_reach_the_workers_and_the_code_comes_back(
    tmp_path: Path, capsule_file: Path, number: signal.Signals, code: int
) -> None:
    run = tmp_path / "run"
    arguments = overrides(capsule_file, run, total_steps=100_000)
    with closing(Forked("train", *arguments, "--nproc", "2", "--json", cwd=tmp_path)) as process:
        wait_for(run, 3, process)
        process.send_signal(number)
        time.sleep(0.1)  # of two that wait together no order is kept
        process.send_signal(signal.SIGTERM)  # a second one, of another kind, changes nothing
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, err
    document = json.loads(out)
    assert (document["exit_code"], document["status"]) == (code, "stopped")
    assert f"{number.name}: saving at step" in err
    assert err.count("the state is saved in") == 1, "one process speaks"
    assert "Traceback" not in err
    status = json.loads((run / "status.json").read_text())
    assert status["exit_code"] == code
    assert len(hashes(run, status["step"])) == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_the_waiting_for_others(
    tmp_path: Path, capsule_file: Path, number: signal.Signals, code: int
) -> None:
    """Of two processes that should meet only one was started."""
    place = places(2)[0]
    port = int(place["MASTER_PORT"])
    patch = "import trm_core.distributed.processes as p; p._SILENCE_S = 1.0"
    arguments = overrides(capsule_file, tmp_path / "run")
    with closing(Forked("train", *arguments, cwd=tmp_path, patch=patch, **place)) as process:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with socket.socket() as other:
                if other.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        time.sleep(1.5)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert err.count(f"waiting at 127.0.0.1:{port} for the others: process 0 of 2, started by torchrun") == 1
    assert "stopped while waiting for the other processes" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_whose_launcher_is_gone_save_and_end(tmp_path: Path, capsule_file: Path) -> None:
    """As those of a torchrun that died of a signal which it does not know."""
    run = tmp_path / "run"
    arguments = overrides(capsule_file, run, total_steps=100_000)
    with closing(Forked("train", *arguments, "--nproc", "2", cwd=tmp_path)) as process:
        wait_for(run, 3, process)
        workers = [find_worker(process.pid, rank) for rank in (0, 1)]
        assert None not in workers
        process.kill()
        until = time.monotonic() + 60
        while any(alive(each) for each in workers):
            assert time.monotonic() < until, "they are still there"
            time.sleep(0.1)
        _, err = process.communicate()
    assert "torchrun is gone: saving at step" in err
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", 75)
    assert len(hashes(run, status["step"])) == 4


@pytest.mark.slow
def test_mistakes_are_told_once_and_keep_their_code(tmp_path: Path, capsule_file: Path) -> None:
    odd = overrides(capsule_file, tmp_path / "odd", global_batch_size=9)
    launcher = Forked("train", *odd, "--nproc", "2", cwd=tmp_path)
    _, err = launcher.communicate()
    assert launcher.returncode == 3
    assert err.count("cannot be divided evenly among 2 processes") == 1
    assert not (tmp_path / "odd").exists()
    gone = run_together(2, "train", *overrides(tmp_path / "gone.h5", tmp_path / "run"), cwd=tmp_path)
    assert [one.returncode for one in gone] == [4, 4]
    assert [one.stderr.count("no such file") for one in gone] == [1, 0]
    assert not any("Traceback" in one.stderr for one in gone)


def test_several_processes_do_not_start_groups_of_their_own(
    tmp_path: Path, capsule_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `srun -n 2 trm train --nproc 2`."""
    for name, value in (("STEP_NUM_TASKS", 2), ("PROCID", 0), ("LOCALID", 0), ("STEP_NODELIST", "gpu[01-02]")):
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    words = ["train", *overrides(capsule_file, tmp_path / "run"), "--nproc", "2"]
    monkeypatch.setattr(sys, "argv", ["trm", *words])
    done = tiny.invoke(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--nproc: this is process 0 of 2, started by srun" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_machine_whose_localhost_is_nowhere_is_told(
    tmp_path: Path, capsule_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address of a network for examples, which no machine has."""
    elsewhere = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *names, **settings: elsewhere)
    words = ["train", *overrides(capsule_file, tmp_path / "run"), "--nproc", "2"]
    monkeypatch.setattr(sys, "argv", ["trm", *words])
    done = tiny.invoke(*words)
    assert (done.returncode, done.stdout) == (6, "")
    assert "the name localhost leads to no address of this machine" in done.stderr
    assert "/etc/hosts" in done.stderr


def test_another_batch_goes_on(tmp_path: Path, capsule_file: Path) -> None:
    arguments = overrides(capsule_file, tmp_path / "run")
    stopped = tiny.invoke("train", *arguments, "training.stop_at_step=10")
    assert stopped.returncode == 75, stopped.stderr
    more = ["training.stop_at_step=null", "training.global_batch_size=12", "training.accumulation_steps=2"]
    done = tiny.invoke("train", "--resume", tmp_path / "run", *more)
    assert done.returncode == 0, done.stderr
    assert "changed on resume: training.global_batch_size: 8 -> 12" in done.stderr
    assert "the batch was 8 rows and is 12" in done.stderr
    odd = tiny.invoke("train", *overrides(capsule_file, tmp_path / "odd"), "training.accumulation_steps=3")
    assert odd.returncode == 3
    assert "training.accumulation_steps=3" in odd.stderr


@pytest.mark.slow
def test_the_end_does_not_shut_python_down(tmp_path: Path, capsule_file: Path) -> None:
    """On a busy machine a thread of gloo may still hold the last exchange's tensors then, and aborts. So it always does
    here.
    """
    abort = "import ctypes; ctypes.pythonapi.Py_AtExit(ctypes.CDLL(None).abort)"
    (tmp_path / "sitecustomize.py").write_text(abort)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    shut_down = subprocess.run([sys.executable, "-c", ""], env={**os.environ, "PYTHONPATH": path}, check=False)
    assert shut_down.returncode == -signal.SIGABRT
    arguments = overrides(capsule_file, tmp_path / "run", total_steps=3)
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(started(*arguments, cwd=tmp_path, PYTHONPATH=path, **place)) for place in places(2)
        ]
        for process in ranks:
            _, err = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, err
