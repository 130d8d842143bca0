"""What the launcher passes on to the processes that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trm_core.training import launch

# Says the number of every signal that it gets.
CHILD = """
import signal, time
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda n, frame: print(n, flush=True))
print("up", flush=True)
until = time.monotonic() + 60
while time.monotonic() < until:
    time.sleep(0.05)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the launcher finds its processes in /proc")
def test_a_second_signal_does_not_overtake_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handler runs in the middle of the first one's, before that has passed anything on."""
    find, calls = launch.children, []

    def interrupted() -> list[int]:
        calls.append(None)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)  # here the second handler runs, whole
        return find()

    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "up\n"
            monkeypatch.setattr(launch, "children", interrupted)
            with launch.signals_to_workers():
                os.kill(os.getpid(), signal.SIGUSR1)
                time.sleep(0.05)
            assert len(calls) == 2
            assert int(child.stdout.readline()) == signal.SIGUSR1
        finally:
            child.kill()
