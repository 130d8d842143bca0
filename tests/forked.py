"""Run `trm` in separate processes without their start-up, which takes some 5 s of a core. They are forked from a
process that has imported everything, and inherit nothing from the test's process. For tests of start-up use
`tiny.run_trm`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import tiny

from trm_core.data import workers

PRELOADED = ["pytest", "tiny", "torch.distributed", "trm_cli.main", "trm_core.runs", "sklearn.linear_model"]


def start_server() -> None:
    """Start the process to fork from; it lives until this one ends."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    search = [str(Path(__file__).parent), str(tiny.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join(search))
        patched.setenv("OMP_NUM_THREADS", "1")  # otherwise numpy starts threads, with which forking is unsafe
        forkserver.ensure_running()


class Forked:
    """A running `trm arguments`, with as much of the interface of `subprocess.Popen` as the tests need."""

    def __init__(self, *arguments: str | Path, cwd: Path, patch: str = "", **environment: str) -> None:
        """patch: statements for it to execute first."""
        start_server()
        self.out, self.err = (cwd / f"{name}-{time.monotonic_ns()}.txt" for name in ("out", "err"))
        words, environment = [str(one) for one in arguments], {**tiny.environment(cwd), **environment}
        given = (words, cwd, environment, self.out, self.err, patch)
        self.process = multiprocessing.get_context("forkserver").Process(target=_trm, args=given)
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self.process.join(60)

    def wait(self, timeout: float) -> int:
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still there after {timeout} s: {self.read(self.err)}"
        return self.process.exitcode

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        self.wait(timeout)
        return self.read(self.out), self.read(self.err)

    def first_line(self) -> str:
        """Wait for the first line of its output."""
        while "\n" not in (text := self.read(self.out)):
            assert self.poll() is None, self.communicate()
            time.sleep(0.02)
        return text.partition("\n")[0]

    def read(self, path: Path) -> str:
        return path.read_text() if path.exists() else ""


def _trm(arguments: list[str], cwd: Path, environment: dict[str, str], out: Path, err: Path, patch: str) -> None:
    exec(patch, {})
    files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in (out, err)]
    run_here(arguments, cwd, environment, [os.open(os.devnull, os.O_RDONLY), *files])


def run_here(arguments: list[str], cwd: Path, environment: dict[str, str], streams: list[int]) -> NoReturn:
    """Become `trm arguments`, as a shell would run it. streams: file descriptors of its stdin, stdout and stderr."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as from a terminal, even if the tests run under nohup
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    # The streams inherited from the server refer to other files.
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = ["trm", *arguments]
    from trm_cli.main import main

    code: object = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001 - said as Python says it, without its end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def places(count: int) -> list[dict[str, str]]:
    """The environment in which torchrun starts each of `count` processes, which meet at a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    return [{**meeting, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(count)]


@contextmanager
def together(count: int, *arguments: str | Path, cwd: Path) -> Iterator[list[Forked]]:
    """Start the processes of one run."""
    started = [Forked(*arguments, cwd=cwd, **place) for place in places(count)]
    try:
        yield started
    finally:
        for each in started:
            each.close()


def run_together(count: int, *arguments: str | Path, cwd: Path) -> list[tiny.Outcome]:
    """Run the processes of one run to their end; their outcomes, by rank."""
    with together(count, *arguments, cwd=cwd) as started:
        ends = [each.communicate() for each in started]
        codes = [each.returncode for each in started]
    return [tiny.Outcome(int(code or 0), *texts) for code, texts in zip(codes, ends, strict=True)]


@contextmanager
def forked_workers() -> Iterator[None]:
    """Within the context, builds in this process fork their workers from the server too, inheriting nothing, just as
    spawned ones.
    """

    def get_context(method: str) -> BaseContext:
        start_server()
        return multiprocessing.get_context("forkserver")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(workers, "multiprocessing", SimpleNamespace(get_context=get_context))
        yield
