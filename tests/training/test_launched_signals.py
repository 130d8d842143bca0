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


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="the launcher finds its processes in /proc"
)

# Two processes that handle no signal yet.
LAUNCHER = """
import sys
from trm_core.training.launch import launch

ended = launch(2, "sleeper", [])
print(ended.message)
sys.exit(ended.code)
"""

# As a program starts there, also where the tests themselves run under nohup.
TERMINAL = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"


def test_a_process_that_starts_after_the_signal_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_REPEAT_S", 0.05)
    others = set(launch.children())  # of earlier tests
    find = launch.children
    monkeypatch.setattr(launch, "children", lambda: [child for child in find() if child not in others])
    with launch.signals_to_workers():
        os.kill(os.getpid(), signal.SIGUSR1)
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
            try:
                assert child.wait(timeout=30) == -signal.SIGUSR1
            finally:
                child.kill()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
def test_processes_that_die_of_the_signal_have_stopped_as_asked(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    launcher, out, err = launched(tmp_path, [sys.executable], "60", number, TERMINAL + LAUNCHER)
    assert (launcher, out) == (code, "None\n"), err


def test_under_nohup_the_processes_outlive_the_terminal(tmp_path: Path) -> None:
    code, out, err = launched(tmp_path, ["nohup", sys.executable], "3", signal.SIGHUP)
    assert (code, out) == (0, "None\n"), err


def launched(
    folder: Path, python: list[str], seconds: str, number: signal.Signals, program: str = LAUNCHER
) -> tuple[int, str, str]:
    """Code, stdout and stderr of a launcher whose two processes live for so long, and which gets a signal meanwhile."""
    # One write each: what two processes print may come out mixed.
    (folder / "sleeper.py").write_text(f"import os, time; os.write(1, b'up\\n'); time.sleep({seconds})")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))}
    command = [*python, "-c", program]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=folder) as launcher:
        assert launcher.stdout is not None
        try:
            assert [launcher.stdout.readline() for _ in range(2)] == ["up\n"] * 2
            launcher.send_signal(number)
            out, err = launcher.communicate(timeout=60)
        finally:
            launcher.kill()
    return launcher.returncode, out, err


def test_what_a_killed_process_had_printed_is_kept(tmp_path: Path) -> None:
    speak = "import os; first = os.environ['RANK'] == '0'; os.write(1, b'{1: ' if first else b'other\\n')"
    (tmp_path / "sleeper.py").write_text(f"{speak}; first and os.kill(os.getpid(), 9); import time; time.sleep(60)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))}
    command = [sys.executable, "-c", LAUNCHER.replace("[])", "[], keep_stdout=True)").replace("ended.message", "ended")]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60, check=False
    )
    assert done.returncode == 6, done.stderr
    assert "process 0 was killed by SIGKILL" in done.stdout
    assert "printed='{1: ')" in done.stdout, "neither more nor less"


def test_a_second_signal_does_not_overtake_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handler runs in the middle of the first one's, before that has passed anything on."""
    others, find, calls = set(launch.children()), launch.children, []

    def interrupted() -> list[int]:
        calls.append(None)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)  # here the second handler runs, whole
        return [child for child in find() if child not in others]

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


def test_a_process_whose_name_is_no_text_is_a_process() -> None:
    rename = "import pathlib; pathlib.Path('/proc/self/comm').write_bytes(b'\\xc3'); print('up', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", rename], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in launch.children()
        child.kill()
