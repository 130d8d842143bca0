"""Two processes of one run, started by `--nproc 2`: one of them, drawn at random, is killed, and the run goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import aim
import pytest
import remains
import tiny
from configurations import CONFIGURATIONS, write_data
from launched import find_worker
from remains import Remains

KILLS = 3
PATIENCE_S = 120
SEED = int(os.environ.get("TRM_TORTURE_SEED", "1"))


def killed_once(arguments: list[str], folder: Path, run: Path, draw: random.Random) -> int:
    """The exit code of a life in which one process is killed inside a save, unless it is done before."""
    command = [sys.executable, "-m", "trm_cli.main", *arguments, "--nproc", "2"]
    moment, rank = aim.inside_a_save(draw, run), draw.randrange(2)
    with (folder / "lives.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=tiny.environment(folder), stdout=log, stderr=log)
    worker = None
    until = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < until:
        if worker is None:
            worker = find_worker(process.pid, rank)
        elif moment():
            os.kill(worker, signal.SIGKILL)
            break
        time.sleep(aim.POLL_S)
    return process.wait(timeout=PATIENCE_S)


@pytest.mark.slow(minutes=2)
def test_one_of_two_is_killed_again_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path)
    configuration = CONFIGURATIONS["average and prioritised replay"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = tiny.run_trm(*configuration.arguments(data, whole), "--nproc", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    draw = random.Random(SEED)
    kills: list[Remains] = []
    arguments = configuration.arguments(data, run)
    while len(kills) < KILLS:
        before = aim.folders(run)
        code = killed_once(arguments, tmp_path, run, draw)
        if code == 0:
            break
        assert code == 6, (tmp_path / "lives.log").read_text()[-3000:]
        kills.append(remains.examine(run, before, configuration.interval, configuration.keep))
        # The first process says that it lost the other; killed itself, it says nothing any more.
        remains.require_sane_status(run, max(kill.logged for kill in kills), ("failed", 6), ("running", None))
    done = tiny.run_trm(*arguments, "--nproc", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with capsys.disabled():
        print(f"\n{remains.told(kills)}")
    assert len(kills) > 1
    assert remains.outcome(run) == remains.outcome(whole)
