"""Worker processes: order, a worker that dies, one that cannot start, and none that outlives its builder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.worker_jobs import die_at, signal_itself, square
from trm_core.child_process import STOP_SIGNALS
from trm_core.data.workers import started_workers
from trm_core.errors import ResourceError


@pytest.mark.parametrize("count", [0, 1, 3])
def test_results_come_in_the_order_of_the_jobs(count: int) -> None:
    with started_workers(count, "workers") as workers:
        assert list(workers.in_order(square, ((number,) for number in range(20)))) == [n * n for n in range(20)]
        assert list(workers.in_order(square, [])) == []


def test_a_worker_that_dies_ends_it_with_the_setting_to_lower() -> None:
    with (
        pytest.raises(ResourceError, match="a worker process died") as caught,
        started_workers(2, "data.build.workers") as workers,
    ):
        list(workers.in_order(die_at, [(number, 5) for number in range(20)]))
    assert caught.value.hint == "use fewer workers: data.build.workers"


def test_signals_that_stop_a_job_are_left_to_the_builder() -> None:
    with started_workers(1, "workers") as workers:
        assert list(workers.in_order(signal_itself, ((number,) for number in STOP_SIGNALS))) == list(STOP_SIGNALS)


def test_an_exception_ends_workers_amid_a_long_job() -> None:
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        fail_amid_long_jobs()
    assert time.monotonic() - began < 40


def fail_amid_long_jobs() -> None:
    with started_workers(1, "workers") as workers:
        for _ in workers.in_order(time.sleep, [(0,), (80,), (80,)]):
            raise ZeroDivisionError


def test_a_script_without_a_guard_is_told_and_does_not_wait(tmp_path: Path) -> None:
    """Workers import the script again, which starts a build of the same file there: they end before they can work."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from trm_core.config.schema import BuildConfig\n"
        "from trm_core.data.build.pipeline import build_capsules\n"
        f"build_capsules(['digits'], Path({str(tmp_path / 'digits.h5')!r}), BuildConfig(workers=2))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "ResourceError: no worker process could start" in done.stderr


def test_a_module_that_cannot_be_imported_is_no_want_of_memory() -> None:
    with (
        pytest.raises(ResourceError, match="no worker process could start") as caught,
        started_workers(2, "data.build.workers", ["a_module_that_is_not_there"]) as workers,
    ):
        list(workers.in_order(square, [(1,)]))
    assert "data.build.workers=0" in str(caught.value.hint)


def test_no_worker_outlives_a_builder_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path\n"
        "from trm_core.data.workers import started_workers\n"
        "from tests.data.worker_jobs import note_and_sleep\n"
        "with started_workers(2, 'workers') as workers:\n"
        f"    list(workers.in_order(note_and_sleep, [({str(tmp_path)!r},)] * 2))\n"
    )
    builder = subprocess.Popen([sys.executable, "-c", program])
    _wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    _wait_until(lambda: not any(_runs(int(note.name)) for note in tmp_path.iterdir()))


def _wait_until(true: object) -> None:
    assert callable(true)
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    # A process whose parent was killed waits for init, which may be slow or absent in a container.
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
