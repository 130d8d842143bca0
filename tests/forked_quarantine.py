"""The children that examine strangers' files (`trm_core.data.store.quarantine`), forked from a process with h5py
loaded.

Starting an interpreter for each takes a third of a second, most of the time that a small file needs.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn


class Look:
    """One child, with as much of the interface of `subprocess.Popen` as the quarantine needs."""

    def __init__(self, address: str, path: Path) -> None:
        self.returncode: int | None = None
        self.server = socket.socket(socket.AF_UNIX)
        self.server.connect(address)
        self.streams = [os.memfd_create(name) for name in ("output", "errors")]
        socket.send_fds(self.server, [json.dumps([os.getcwd(), os.fspath(path)]).encode()], self.streams)
        self.pid = int.from_bytes(self.server.recv(4), "little")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
        self.server.settimeout(timeout)
        try:
            code = self.server.recv(4)
        except TimeoutError:
            raise subprocess.TimeoutExpired("looking", timeout or 0) from None
        self.server.close()
        self.returncode = int.from_bytes(code, "little", signed=True)
        output, errors = (said(stream) for stream in self.streams)
        return output, errors


def said(stream: int) -> bytes:
    os.lseek(stream, 0, os.SEEK_SET)
    with open(stream, "rb") as file:
        return file.read()


@contextmanager
def quarantine_server() -> Iterator[str]:
    """Run the server; its address."""
    address = f"\0quarantine-{os.getpid()}-{os.urandom(4).hex()}"  # abstract: leaves no file
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, __file__, address[1:]], stdin=pipe, stdout=pipe, env=environment) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield address


def serve(address: str) -> None:
    """Serve until stdin ends, as it does when the parent process ends."""
    from trm_core.data.store import guard, quarantine  # noqa: F401 - what is there before the fork

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        assert len(os.listdir("/proc/self/task")) == 1, "a fork of threads is not sound"
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            caller, _ = listener.accept()
            if os.fork() == 0:
                answer(caller)
            caller.close()


def answer(caller: socket.socket) -> NoReturn:
    """Answer a caller with the id of the process that examines the file and, later, with its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked, streams, _, _ = socket.recv_fds(caller, 1 << 16, 2)
    looks = os.fork()
    if looks == 0:
        look(*json.loads(asked), streams)
    caller.sendall(looks.to_bytes(4, "little"))
    code = os.waitstatus_to_exitcode(os.waitpid(looks, 0)[1])
    caller.sendall(code.to_bytes(4, "little", signed=True))
    os._exit(0)


def look(folder: str, path: str, streams: list[int]) -> NoReturn:
    from trm_core.data.store.quarantine import child

    code = 1
    try:
        os.chdir(folder)
        for number, stream in enumerate(streams, start=1):
            os.dup2(stream, number)
        code = child(path)
    except BaseException:  # noqa: BLE001 - said as Python says it, without its end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(f"\0{sys.argv[1]}")
