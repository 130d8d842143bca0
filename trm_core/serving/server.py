"""The server process: a socket, uvicorn, the worker, and a shutdown in which nothing that was accepted is dropped."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import uvicorn
from starlette.datastructures import State

from trm_core.errors import DataError, ResourceError, TrmError
from trm_core.inference.predictor import Predictor
from trm_core.serving.app import Limits, make_app
from trm_core.serving.metrics import Metrics
from trm_core.serving.worker import Worker

_LOOK_SECONDS = 0.2
_DOOR_SECONDS = 0.3  # for connections begun before the signal
_GRACE_SECONDS = 1.0
_PATIENCE_SECONDS = 10.0
_SO_ATTACH_FILTER = 26  # Python has no name for it
_SYN, _ACK = 0x02, 0x10
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class ServerSettings:
    """`port` 0: any free one. batch, most_waiting: rows that think and rows that wait; with restarts a sample is
    several rows.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    batch: int = 64
    most_waiting: int = 4096
    limits: Limits = field(default_factory=Limits)


class WorkerFailed(TrmError):
    """The worker thread ended with an error: a bug of ours."""


def serve(
    predictor: Predictor,
    policy: str | None,
    price: float | None,
    confidence: float,
    settings: ServerSettings,
    on_ready: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT; then answer what was accepted. on_ready is called with the address.

    Raises ResourceError if the address cannot be used, and WorkerFailed.
    """
    metrics = Metrics()
    acting = predictor.policy(policy, price, confidence)
    with suppress(DataError):  # a model without an encoder answers capsules; clients that send raw samples are told
        _ = predictor.encoder
    worker = Worker(predictor.trained, acting, settings.batch, settings.most_waiting, metrics, predictor.beginnings)
    app = make_app(predictor, acting.name, worker, metrics, settings.limits)
    listening = listen(settings.host, settings.port)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_keep_alive=5)
    server = Server(config)
    worker.start()
    address = address_of(listening)
    try:
        asyncio.run(_until_stopped(server, worker, listening, app.state, lambda: on_ready(address)))
    finally:
        worker.close()
        listening.close()
    if worker.failure is not None:
        raise WorkerFailed(f"the worker failed: {worker.failure}") from worker.failure


class Server(uvicorn.Server):
    """uvicorn's own handlers would kill the process by the same signal again after an orderly shutdown."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _until_stopped(
    server: Server, worker: Worker, listening: socket.socket, state: State, on_ready: Callable[[], None]
) -> None:
    """On a signal no new connection is begun, and kept connections end with their next answer, which says so. After a
    while uvicorn closes idle ones and waits for the requests in flight. A second signal changes nothing.
    """
    loop = asyncio.get_running_loop()

    late: list[asyncio.Task[object]] = []  # a task without a reference may vanish

    def leave() -> None:
        server.should_exit = True

    def stop() -> None:
        if not state.stopping:
            state.stopping = True
            begin_no_connection(listening)
            loop.call_later(_DOOR_SECONDS, lambda: late.extend(_close_door(server, listening)))
            # A kept connection may have a request on its way, which nobody would answer if it were closed at once.
            loop.call_later(_GRACE_SECONDS, leave)

    # Python's own handlers rather than the loop's, which would be removed when the loop is closed: a late second signal
    # would then kill the process.
    for number in _SIGNALS:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    on_ready()
    busy = time.monotonic()
    while not serving.done():
        await asyncio.wait([serving], timeout=_LOOK_SECONDS)
        if worker.failure is not None:
            leave()
        if not server.should_exit or state.answering:
            busy = time.monotonic()
        elif time.monotonic() - busy > _PATIENCE_SECONDS:
            _hang_up(server)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    await serving


def _close_door(server: Server, listening: socket.socket) -> list[asyncio.Task[object]]:
    """Take no new connections. Those that the system has made and the loop has not seen yet would be reset with the
    socket, though their clients may have sent a request: they are accepted first, with no turn of the loop in between.
    """
    if not server.servers:
        return []  # uvicorn is still starting, and closes whatever it opens
    made: list[socket.socket] = []
    with suppress(OSError):  # nothing is left to accept, or too many files are open
        while True:
            made.append(listening.accept()[0])
    for accepting in server.servers:
        accepting.close()
    loop, config = asyncio.get_running_loop(), server.config
    protocol: Any = config.http_protocol_class  # created as uvicorn creates its own
    made_as = partial(protocol, config=config, server_state=server.server_state, app_state=server.lifespan.state)
    return [loop.create_task(loop.connect_accepted_socket(made_as, connection)) for connection in made]


def begin_no_connection(listening: socket.socket) -> None:
    """From now on the system ignores a client's first segment, but completes the connections that have begun. The
    client tries again after a second, and is refused once the socket is closed. Without this, a connection made between
    the last look and the closing of the socket would be reset. Does nothing on systems other than Linux.
    """
    if sys.platform != "linux":
        return
    # A classic BPF program, which the listening socket runs over each TCP header: byte 13 holds the flags.
    steps = [
        (0x30, 0, 0, 13),  # load that byte
        (0x54, 0, 0, _SYN | _ACK),  # and
        (0x15, 0, 1, _SYN),  # skip the next step unless it is SYN alone
        (0x06, 0, 0, 0),  # drop the segment
        (0x06, 0, 0, 0xFFFF),  # keep it
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    with suppress(OSError):  # a sandbox may not allow it
        listening.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(steps), ctypes.addressof(program))
        )


def _hang_up(server: Server) -> None:
    """Hang up on clients that neither finish their request nor read their answer: the end must not wait for them."""
    for connection in list(server.server_state.connections):
        connection.transport.abort()


def address_of(listening: socket.socket) -> str:
    """What clients connect to."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ResourceError if the address is taken or does not belong to this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )[0]
        # The protocol is named as TCP, which `create_server` leaves open: asyncio turns off Nagle's algorithm only for
        # that, and otherwise an answer waits 40 ms for the client to acknowledge its header.
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
        listening.setblocking(False)
        return listening
    except (OSError, OverflowError) as error:
        raise ResourceError(
            f"cannot listen on {host}:{port}: {error}", hint="choose another --port (0: any that is free) or --host"
        ) from error
