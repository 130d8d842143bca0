"""A program `trm` for shells and batch scripts whose every call is forked, as by `forked`.

The program hands its standard streams, folder, environment and arguments to a server, forwards signals to the forked
process and ends as that does. If it is killed itself, it takes the process with it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import selectors
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forked import run_here, start_server

PROGRAM = """#!{python} -S
import json, os, signal, socket, sys

server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
said = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(said).to_bytes(4, "little")], [0, 1, 2])
server.sendall(said)
process = int.from_bytes(server.recv(4), "little")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: os.kill(process, number))
code = int.from_bytes(server.recv(4), "little", signed=True)
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@contextmanager
def trm_program(path: Path) -> Iterator[None]:
    """Write the program to `path`; it works while its server runs, that is, within the context."""
    start_server()
    with socket.socket(socket.AF_UNIX) as listener:
        address = f"\0trm-{os.getpid()}-{os.urandom(4).hex()}"  # abstract: leaves no file
        listener.bind(address)
        listener.listen()
        server = multiprocessing.get_context("forkserver").Process(target=serve, args=(listener,))
        server.start()
    path.write_text(PROGRAM.format(python=sys.executable, address=address))
    path.chmod(0o755)
    try:
        yield
    finally:
        server.terminate()
        server.join()


def serve(listener: socket.socket) -> None:
    """Fork a process for each call, wait for it, and kill it if its caller is gone."""
    assert len(os.listdir("/proc/self/task")) == 1, "a fork of threads is not sound"
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ, None)
    while True:
        for key, _ in selector.select():
            if key.data is None:
                caller, _ = listener.accept()
                process = begin(caller)
                for one in (caller, os.pidfd_open(process)):
                    selector.register(one, selectors.EVENT_READ, (process, caller))
            elif isinstance(key.fileobj, socket.socket):
                selector.unregister(key.fileobj)  # callers send nothing more, so this one is gone
                os.kill(key.data[0], signal.SIGKILL)
            else:
                process, caller = key.data
                code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                selector.unregister(key.fileobj)
                os.close(int(key.fd))
                if caller in {one.fileobj for one in selector.get_map().values()}:
                    selector.unregister(caller)
                    caller.sendall(code.to_bytes(4, "little", signed=True))
                caller.close()


def begin(caller: socket.socket) -> int:
    """Fork the process of a call; its id."""
    size, streams, _, _ = socket.recv_fds(caller, 4, 3)
    said, length = b"", int.from_bytes(size, "little")
    while len(said) < length:
        said += caller.recv(length - len(said))
    arguments, folder, environment = json.loads(said)
    process = os.fork()
    if process == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        run_here(arguments, Path(folder), environment, streams)
    for one in streams:
        os.close(one)
    caller.sendall(process.to_bytes(4, "little"))
    return process
