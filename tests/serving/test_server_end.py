"""How a real server ends: signals under load, clients that stall, bugs in the thread that thinks."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny
from served import SURE, TRM, as_json, start

from trm_core.inference.predictor import Predictor
from trm_core.serving.server import address_of, begin_no_connection, listen


def test_a_signal_under_load_drops_nothing(
    trained_run: Path, tmp_path: Path, fields: Any, predictor: Predictor
) -> None:
    process, address = start(trained_run, tmp_path, "--policy", "threshold", "--confidence", str(SURE))
    expected = predictor.predict(policy="threshold", confidence=SURE, **fields)
    answered, refused, dropped, wrong = 0, 0, 0, 0
    lock = threading.Lock()

    def ask(number: int) -> None:
        """Over one connection that is kept, as long as it is."""
        nonlocal answered, refused, dropped, wrong
        body = {"samples": as_json(fields, [number])}
        with httpx.Client(base_url=address, timeout=30) as client:
            while True:
                try:
                    answer = client.post("/predict", json=body)
                except httpx.ConnectError:
                    refused += 1
                    return
                except httpx.TransportError:
                    dropped += 1
                    return
                with lock:
                    answered += 1
                    wrong += answer.status_code != 200
                    wrong += answer.json()["answers"][0]["prediction"] != expected[number].prediction[0]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        if answered > 100:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    for thread in threads:
        thread.join()
    assert process.returncode == 0, errors
    assert (refused, dropped) == (24, 0)
    assert "all accepted requests were answered" in errors
    assert "Traceback" not in errors
    assert answered > 100
    assert wrong == 0


def test_connections_of_one_request_are_answered_or_refused(trained_run: Path, tmp_path: Path, fields: Any) -> None:
    """Those that the system has made when the signal comes, and nobody has looked at, count as accepted."""
    process, address = start(trained_run, tmp_path, "--policy", "never")
    body = {"samples": as_json(fields, [0])}
    outcomes: list[str] = []

    def ask() -> None:
        while True:
            try:
                answer = httpx.post(f"{address}/predict", json=body, timeout=30)
            except httpx.ConnectError:
                outcomes.append("refused")
                return
            except httpx.TransportError as error:
                outcomes.append(f"dropped: {error!r}")
                return
            outcomes.append(str(answer.status_code))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(600):
        if len(outcomes) > 40:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    for thread in threads:
        thread.join()
    assert process.returncode == 0, errors
    assert set(outcomes) == {"200", "refused"}
    assert outcomes.count("refused") == 8


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux filters a listening socket's segments")
def test_no_connection_is_made_after_the_signal_and_none_is_reset() -> None:
    """Whatever comes between the last look at the socket and its end: it would be reset, not refused."""
    listening = listen("127.0.0.1", 0)
    address = listening.getsockname()
    early = socket.create_connection(address)
    begin_no_connection(listening)
    early.sendall(b"one that the system has made is heard")
    accepted, _ = listening.accept()
    accepted.settimeout(5)
    assert accepted.recv(100) == b"one that the system has made is heard"
    late: list[object] = []

    def connect() -> None:
        try:
            late.append(socket.create_connection(address, timeout=20))
        except OSError as error:
            late.append(error)

    thread = threading.Thread(target=connect)
    thread.start()
    time.sleep(0.3)
    with pytest.raises(BlockingIOError):
        listening.accept()
    listening.close()
    thread.join()
    assert isinstance(late[0], ConnectionRefusedError)


@pytest.mark.parametrize(("host", "written"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_an_address_is_written_as_in_a_browser(host: str, written: str) -> None:
    if host == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with listen(host, 0) as listening:
        assert address_of(listening) == f"http://{written}:{listening.getsockname()[1]}"


def test_the_address_as_json(trained_run: Path, tmp_path: Path, fields: Any) -> None:
    """One document, and nothing else by the end; the options reach the model."""
    steps = ["--max-steps", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", TRM, "serve", str(trained_run), "--port", "0", "--json", "--policy", "never", *steps],
        env=tiny.environment(tmp_path),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    said = json.loads("".join(lines))
    assert said["model"] == str(trained_run)
    assert httpx.get(f"{said['address']}/health").status_code == 200
    answer = httpx.post(f"{said['address']}/predict", json={"samples": as_json(fields, [0])}, timeout=30)
    assert answer.json()["answers"][0]["steps"] == 1
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == ""
    assert process.returncode == 0


def connect(address: str, body: bytes, length: int | None = None) -> socket.socket:
    """A client that has sent `body`, of `length` bytes by its header."""
    host, _, port = address.removeprefix("http://").partition(":")
    client = socket.create_connection((host, int(port)), timeout=20)
    client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (length or len(body)) + body)
    return client


IMPATIENT = "import trm_core.serving.server as s; s._PATIENCE_SECONDS = 0.5"


@pytest.mark.slow
def test_clients_that_fall_silent_do_not_hold_up_the_end(trained_run: Path, tmp_path: Path) -> None:
    process, address = start(trained_run, tmp_path, patch=IMPATIENT)
    gone, silent = connect(address, b'{"sam', 100), connect(address, b'{"sam', 100)
    gone.close()
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    silent.close()
    assert process.returncode == 0
    assert errors == "stopped: all accepted requests were answered\n"


@pytest.mark.parametrize("place", ["admit", pytest.param("step", marks=pytest.mark.slow)])
def test_a_bug_ends_the_process_and_no_client_waits(trained_run: Path, tmp_path: Path, fields: Any, place: str) -> None:
    broken = f"import trm_core.inference.engine as e; e.Engine.{place} = lambda *_: 1 // 0"
    process, address = start(trained_run, tmp_path, patch=f"{IMPATIENT}\n{broken}")
    silent = connect(address, b'{"sam', 100)
    asking = connect(address, json.dumps({"samples": as_json(fields, [0])}).encode())
    assert asking.recv(100).startswith(b"HTTP/1.1 503")
    _, errors = process.communicate(timeout=20)
    silent.close()
    assert process.returncode == 70
    assert "internal error" in errors or "the worker failed" in errors


@pytest.mark.slow
def test_an_endless_body_is_not_read_on(trained_run: Path, tmp_path: Path) -> None:
    process, address = start(trained_run, tmp_path, "--max-request-mb", "0.1")
    client = connect(address, b"", 10**12)
    sent = 0
    with suppress(ConnectionError):  # a reset or a broken pipe, as it happens
        while sent < 10**9:
            client.sendall(b" " * 100_000)
            sent += 100_000
    assert sent < 10**8  # what fits into the buffers of the system
    assert httpx.get(f"{address}/health").status_code == 200
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0
