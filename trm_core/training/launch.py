"""`--nproc N`: N processes on this machine, started and watched by torchrun's own agent.

On its own, the agent would die of SIGUSR1 and orphan its workers, and it turns every exit code into 1. So signals are
passed from here straight to the workers, which save and exit by themselves, and the outcome is read from what they
leave behind: `status.json`, or the exit code of the first that failed before there was a run.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from trm_core.errors import ExitCode, ResourceError
from trm_core.training.run_dir import STATUS
from trm_core.training.stopping import handled_by

_REPEAT_S = 1.0


def without_nproc(arguments: list[str]) -> list[str]:
    """The command line of each process: the given one without its `--nproc N` or `--nproc=N`."""
    at = next(i for i, text in enumerate(arguments) if text == "--nproc" or text.startswith("--nproc="))
    return arguments[:at] + arguments[at + (1 if "=" in arguments[at] else 2) :]


@dataclass(frozen=True)
class Ended:
    """How the processes ended. message: says that one was killed, which no process could report itself. printed: what
    process 0 wrote to stdout, if that was kept; nothing, or a part, if it was killed before.
    """

    code: int
    message: str | None = None
    printed: str = ""


def launch(
    processes: int, module: str, arguments: list[str], run: Path | None = None, *, keep_stdout: bool = False
) -> Ended:
    """Run `python -m module arguments` in `processes` processes, which train `run` if they train.

    keep_stdout: process 0 writes to a file, so that the caller knows what was printed and what was not. Raises
    ResourceError where localhost is nowhere.
    """
    require_localhost()
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    with tempfile.TemporaryDirectory(prefix="trm-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            monitor_interval=0.2,
            local_addr="localhost",
            signals_to_handle="",  # `signals_to_workers` handles them
            logs_specs=DefaultLogsSpecs(folder, redirects={0: Std.OUT} if keep_stdout else Std.NONE),
        )
        code, message = _watched(config, module, arguments, run)
        kept = [file.read_text(encoding="utf-8", errors="replace") for file in Path(folder).rglob("stdout.log")]
    return Ended(code, message, "".join(kept))


def require_localhost() -> None:
    """Raise ResourceError unless processes of this machine can find each other under the name localhost."""
    with suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM):
            with suppress(OSError), socket.socket(family, kind, protocol) as own:
                own.bind(address)
                return
    raise ResourceError(
        "--nproc: the name localhost leads to no address of this machine",
        hint="give it one in /etc/hosts: 127.0.0.1, or ::1 where there is only IPv6",
    )


def _watched(config: LaunchConfig, module: str, arguments: list[str], run: Path | None) -> tuple[int, str | None]:
    """Start the processes and wait for their end; returns (exit code, message)."""
    before = None if run is None else _status(run)
    with signals_to_workers() as asked:
        try:
            elastic_launch(config, sys.executable)("-m", module, *arguments)
        except ChildFailedError as failure:
            codes = {rank: failed.exitcode for rank, failed in failure.failures.items()}
        else:
            return int(ExitCode.OK), None
    # A process that a signal killed before its handler was set, or after its work was done, has stopped as requested.
    killed = {rank: -code for rank, code in codes.items() if code < 0 and not asked.explains(-code)}
    message = ", ".join(f"process {rank} was killed by {signal.Signals(n).name}" for rank, n in killed.items()) or None
    status = None if run is None else _status(run)
    if status is not None and status != before and isinstance(status.get("exit_code"), int):
        return int(status["exit_code"]), message
    otherwise = ExitCode.RESOURCES if killed else asked.exit_code
    return next((code for code in codes.values() if code > 0), int(otherwise)), message


class Asked:
    """The first signal received of those that stop a run, if any."""

    def __init__(self) -> None:
        self.first = 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """A later signal passes the first on again: it may interrupt the handler of the first and overtake it."""
        self.first = self.first or number
        self.pass_on()

    def pass_on(self) -> None:
        if self.first:
            for child in children():
                with suppress(ProcessLookupError):
                    os.kill(child, self.first)

    def explains(self, number: int) -> bool:
        """Whether a process was meant to die of that signal: torchrun ends the others by SIGTERM once one is gone."""
        return bool(self.first) and number in (self.first, signal.SIGTERM)

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.INTERRUPTED if self.first == signal.SIGINT else ExitCode.STOPPED_EARLY


@contextmanager
def signals_to_workers() -> Iterator[Asked]:
    """Pass the first signal that should stop the run on to the processes started from here, and stay alive. It is sent
    repeatedly, because there may have been no process yet, or one that could not handle it yet.
    """
    asked, ended = Asked(), threading.Event()

    def repeat() -> None:
        while not ended.wait(_REPEAT_S):
            asked.pass_on()

    with handled_by(asked.handle):
        repeating = threading.Thread(target=repeat, name="signals", daemon=True)
        repeating.start()
        try:
            yield asked
        finally:
            ended.set()
            repeating.join()


def children() -> list[int]:
    """Process ids of this process's children (Linux)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # "pid (name) state parent ..."; the name may contain anything, so read from the last bracket on.
            with suppress(FileNotFoundError, ProcessLookupError):
                parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
                found += [int(entry.name)] * (int(parent) == os.getpid())
    return found


def _status(run: Path) -> dict[str, Any] | None:
    try:
        status = json.loads((run / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return status if isinstance(status, dict) else None
