"""One of the two processes of a run, chosen at random, is killed, and the run is resumed."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import aim
import pytest
import remains
from configurations import CONFIGURATIONS, write_data
from forked import run_together, together
from remains import Remains

KILLS = 3
PATIENCE_S = 120
SEED = int(os.environ.get("TRM_TORTURE_SEED", "1"))


def killed_once(arguments: list[str], folder: Path, run: Path, draw: random.Random) -> list[int]:
    """Kill one process of a life inside a save, unless they are done before; the exit codes of both."""
    moment, training, rank = aim.inside_a_save(draw, run), aim.trains(run), draw.randrange(2)
    until = time.monotonic() + PATIENCE_S
    with together(2, *arguments, cwd=folder) as processes:
        while processes[rank].poll() is None and time.monotonic() < until:
            if moment():
                processes[rank].kill()
                break
            time.sleep(aim.POLL_S if training() else aim.IDLE_S)
        return [process.wait(PATIENCE_S) for process in processes]


@pytest.mark.slow(minutes=2)
def test_one_of_two_is_killed_again_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path)
    configuration = CONFIGURATIONS["average and prioritised replay"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    for done in run_together(2, *configuration.arguments(data, whole), cwd=tmp_path):
        assert done.returncode == 0, done.stderr
    draw = random.Random(SEED)
    kills: list[Remains] = []
    arguments = configuration.arguments(data, run)
    while len(kills) < KILLS:
        before = aim.folders(run)
        codes = killed_once(arguments, tmp_path, run, draw)
        if codes == [0, 0]:
            break
        assert sorted(codes) == [-signal.SIGKILL, 6], [path.read_text() for path in tmp_path.glob("err-*.txt")][-2:]
        kills.append(remains.examine(run, before, configuration.interval, configuration.keep))
        # The first process reports that it lost the other; if it was killed itself, it reports nothing.
        remains.require_sane_status(run, max(kill.logged for kill in kills), ("failed", 6), ("running", None))
    for done in run_together(2, *arguments, cwd=tmp_path):
        assert done.returncode == 0, done.stderr
    with capsys.disabled():
        print(f"\n{remains.told(kills)}")
    assert len(kills) > 1
    assert remains.outcome(run) == remains.outcome(whole)
