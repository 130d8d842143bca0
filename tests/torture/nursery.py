"""A process that has imported everything and forks one child for each life of a trainer, which saves start-up time.

`nursery_process.py` is that process; tests talk to it through `Nursery`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import tiny


class Life:
    """A running child. Its pidfd never refers to another process, even if its process id is reused."""

    def __init__(self, pid: int) -> None:
        self.pid, self.fd = pid, os.pidfd_open(pid)

    @property
    def over(self) -> bool:
        try:
            signal.pidfd_send_signal(self.fd, 0)
        except ProcessLookupError:
            return True
        # A child that has ended remains as a zombie until it is reaped.
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def kill(self) -> None:
        signal.pidfd_send_signal(self.fd, signal.SIGKILL)


class Nursery:
    """Starts lives, one at a time; their output goes into `log`."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "lives.log"
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery_process.py")), str(self.log)],
            stdin=pipe,
            stdout=pipe,
            text=True,
            cwd=folder,
            env=tiny.environment(folder),
        )
        assert self._read() == "ready"

    def start(self, arguments: list[str]) -> Life:
        return Life(int(self._ask(json.dumps(arguments))))

    def end(self, life: Life) -> int:
        """Wait for a life and return its exit code, or the negative number of the signal that ended it."""
        os.close(life.fd)
        return int(self._ask("reap"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, self.log.read_text()[-2000:] if self.log.exists() else "the nursery ended"
        return line
