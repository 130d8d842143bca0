"""The server: the library's answers, limits, a thousand requests that make no sense, an end that drops nothing."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import random
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
import tiny
import torch
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from served import SURE, as_json, start
from sklearn.datasets import load_digits

from trm_core.dqn.actions import Action
from trm_core.errors import DataError
from trm_core.evaluation.policies import Situation, nothing
from trm_core.inference.predictor import Predictor
from trm_core.inference.restarts import Beginnings
from trm_core.inference.samples import samples_of
from trm_core.model.capsule_state import CapsuleState
from trm_core.serving.app import Limits, make_app, problem
from trm_core.serving.metrics import Metrics
from trm_core.serving.worker import QueueFull, ShuttingDown, Worker


def test_answers_are_the_librarys(client: TestClient, predictor: Predictor, fields: dict[str, Any]) -> None:
    """Requests of different sizes at the same time, from many threads."""
    expected = predictor.predict(policy="threshold", confidence=SURE, **fields)
    assert len({answer.steps for answer in expected}) > 1

    def ask(number: int) -> None:
        rows = [(number * 7 + n) % 40 for n in range(1 + number % 5)]
        body = {"samples": as_json(fields, rows), "probabilities": True, "decisions": number % 2 == 0}
        answer = client.post("/predict", json=body)
        assert answer.status_code == 200, answer.text
        for row, found in zip(rows, answer.json()["answers"], strict=True):
            record = expected[row].as_record(True)
            for name in ("prediction", "label", "steps", "opened", "spent"):
                assert found[name] == record[name]
            assert found["confidence"] == pytest.approx(record["confidence"], abs=2e-6)
            assert found["probabilities"] == pytest.approx(record["probabilities"], abs=2e-6)
            assert ("decisions" in found) == (number % 2 == 0)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(60)))
    text = client.get("/metrics").text
    assert 'trm_requests_total{code="200",path="/predict"} 60.0' in text
    health = client.get("/health").json()
    assert (health["status"], health["queue"], health["in_flight"]) == ("ok", 0, 0)


def test_rows_of_several_requests_share_a_step(predictor: Predictor, fields: dict[str, Any]) -> None:
    made = Worker(predictor.trained, predictor.policy("never"), 8, 64, Metrics())
    samples = list(samples_of(fields, predictor.trained))
    futures = [made.submit([sample]) for sample in samples[:8]]
    made.start()
    for future in futures:
        future.result(timeout=20)
    made.close()
    text = made.metrics.text().decode()
    steps = predictor.trained.max_steps
    assert f"trm_step_rows_count {steps}.0" in text  # eight rows, and no more calls than one of them takes
    assert f"trm_step_rows_sum {8 * steps}.0" in text


@dataclass
class Need:
    """A policy that halts each row after a number of steps."""

    selects: ClassVar[bool] = False
    steps: torch.Tensor
    price: float = 0.01
    name: str = "need"

    def open_first(self, capsules: CapsuleState) -> torch.Tensor:
        return nothing(capsules)

    def decide(self, now: Situation) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.where(now.steps >= self.steps[now.rows], int(Action.HALT), int(Action.CONTINUE)), nothing(
            now.capsules
        )


def test_a_row_that_halts_frees_its_place(predictor: Predictor, fields: dict[str, Any]) -> None:
    """Two places: the first request needs three steps, and three others take the other place one after another."""
    made = Worker(predictor.trained, Need(torch.tensor([3, 1, 1, 1])), 2, 64, Metrics())
    ends: list[int] = []
    for number, sample in enumerate(itertools.islice(samples_of(fields, predictor.trained), 4)):
        made.submit([sample]).add_done_callback(lambda _, number=number: ends.append(number))
    made.start()
    made.close()
    assert ends[:2] == [1, 2]
    assert set(ends[2:]) == {0, 3}
    text = made.metrics.text().decode()
    assert "trm_step_rows_count 3.0" in text  # four, if the places of a batch were filled together
    assert "trm_step_rows_sum 6.0" in text
    assert "trm_rows_thinking 0.0" in text


def test_metrics_are_read_by_prometheus(client: TestClient, fields: dict[str, Any]) -> None:
    assert client.post("/predict", json={"samples": as_json(fields, range(5))}).status_code == 200
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    assert {name for name in families if not name.endswith("_created")} == {
        *("trm_requests", "trm_rows", "trm_reasoning_steps", "trm_opened_capsules", "trm_price_units"),
        *("trm_rows_waiting", "trm_rows_thinking", "trm_predict_seconds", "trm_step_rows", "trm_step_seconds"),
    }
    assert families["trm_rows"].samples[0].value == 5
    assert families["trm_predict_seconds"].type == "histogram"


def test_health_describes_the_model(client: TestClient) -> None:
    model = client.get("/health").json()["model"]
    assert (model["policy"], model["classes"]) == ("threshold", 3)
    assert (model["shape"]["num_capsules"], model["shape"]["dim"]) == (tiny.K, tiny.D)


def test_a_request_larger_than_the_batch_is_answered(worker: Worker, predictor: Predictor, fields: Any) -> None:
    answers = worker.submit(list(samples_of(fields, predictor.trained))).result(timeout=20)
    assert [a.prediction for a in answers] == [
        a.prediction for a in predictor.predict(policy="threshold", confidence=SURE, **fields)
    ]


def test_a_full_queue_says_so(predictor: Predictor, fields: dict[str, Any]) -> None:
    waiting = Worker(predictor.trained, predictor.policy("never"), 8, 10, Metrics())  # not started
    app = make_app(predictor, "never", waiting, waiting.metrics, Limits())
    samples = list(samples_of(fields, predictor.trained))
    waiting.submit(samples[:8])
    with pytest.raises(QueueFull):
        waiting.submit(samples[:8])
    with TestClient(app) as client:
        answer = client.post("/predict", json={"samples": as_json(fields, range(3))})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    waiting.start()
    waiting.close()
    with pytest.raises(ShuttingDown):
        waiting.submit(samples[:1])


def test_a_server_that_stops_says_so(client: TestClient, fields: dict[str, Any]) -> None:
    assert "connection" not in client.get("/health").headers
    client.app.state.stopping = True  # type: ignore[attr-defined]
    health = client.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "shutting down")
    answer = client.post("/predict", json={"samples": as_json(fields, [0])})
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")


def test_closing_answers_what_waits(predictor: Predictor, fields: dict[str, Any]) -> None:
    made = Worker(predictor.trained, predictor.policy("never"), 4, 100, Metrics())
    futures = [made.submit([sample]) for sample in samples_of(fields, predictor.trained)]
    made.start()
    made.close()
    assert all(future.done() and future.exception() is None for future in futures)


@pytest.mark.parametrize("restarts", [1, 3])
def test_a_refused_row_is_its_requests_alone(predictor: Predictor, fields: Any, restarts: int) -> None:
    policy, beginnings = predictor.policy("threshold", confidence=SURE), Beginnings(predictor.trained.model, restarts)
    worker = Worker(predictor.trained, policy, 8, 200, Metrics(), beginnings)
    worker.start()
    with_children = list(samples_of(fields, predictor.trained))
    without = list(samples_of({"sketches": fields["sketches"]}, predictor.trained))
    futures: list[Future[Any]] = [worker.submit(without), *(worker.submit([sample]) for sample in with_children[:20])]
    with pytest.raises(DataError, match=r"sample \d+: the model opens capsule \d"):
        futures[0].result(timeout=20)
    assert all(len(future.result(timeout=20)) == 1 for future in futures[1:])
    worker.close()
    assert (worker.rows_waiting, len(worker.engine)) == (0, 0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_the_worker_is_heard_of(predictor: Predictor, fields: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Worker(predictor.trained, predictor.policy("never"), 4, 100, Metrics())

    def broken() -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(made.engine, "step", broken)
    futures = [made.submit([sample]) for sample in samples_of(fields, predictor.trained)]
    made.start()
    made.thread.join()
    assert all(isinstance(future.exception(timeout=5), ShuttingDown) for future in futures)
    app = make_app(predictor, "never", made, made.metrics, Limits())
    with TestClient(app) as client:
        assert client.get("/health").status_code == 500
        assert client.post("/predict", json={"samples": as_json(fields, [0])}).status_code == 503


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b"", 422, "not JSON"),
        (b"{", 422, "not JSON"),
        (b"[" * 50_000, 422, "not JSON"),
        (b"\xff\xfe", 422, "not JSON"),
        (b"[]", 422, "not an object"),
        (b"{}", 422, "samples is not a list"),
        (b'{"samples": []}', 422, "samples is not a list"),
        (b'{"samples": [1]}', 422, "sample 0 is not an object"),
        (b'{"samples": [{}]}', 422, "sample 0: no sketches"),
        (b'{"samples": [{"sketches": NaN}]}', 422, "NaN is not allowed"),
        (b'{"samples": [{"sketches": [[1]]}]}', 422, "sketches has 1 entries where 4"),
        (b'{"samples": [{"sketches": [[1, 2, "3"], [], [], []]}]}', 422, "sketches[0][2] holds '3'"),
        (b'{"samples": [{"sketches": [[1, 2, true], [], [], []]}]}', 422, "holds 'True'"),
        (b'{"samples": [{"sketches": [[1, 2, 1e999], [1,1,1], [1,1,1], [1,1,1]]}]}', 422, "NaN or infinity"),
        (b'{"samples": [{"sketches": [[1, 2, ' + b"9" * 400 + b"], [1,1,1], [1,1,1], [1,1,1]]}]}", 422, "sample 0"),
        (b'{"samples": [{"sketch": []}]}', 422, "unknown field 'sketch'"),
        (b'{"samples": [{}], "what": 1}', 422, "unknown field 'what'"),
        (b'{"samples": [{}], "decisions": 1}', 422, "neither true nor false"),
        (b'{"samples": [' + b"{}," * 60 + b"{}]}", 422, "at most 50"),
        (b" " * 200_001, 413, "larger than 200000"),
    ],
)
def test_bad_bodies_are_named(client: TestClient, body: bytes, code: int, message: str) -> None:
    answer = client.post("/predict", content=body)
    assert answer.status_code == code, answer.text
    assert message in answer.json()["error"]


def test_a_body_without_a_length_is_cut_off(client: TestClient) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b" " * 10_000

    assert client.post("/predict", content=pieces()).status_code == 413


@pytest.mark.parametrize(
    ("named", "code"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
    ],
)
def test_other_types_of_content_are_refused(client: TestClient, fields: Any, named: str, code: int) -> None:
    body = json.dumps({"samples": as_json(fields, [0])})
    answer = client.post("/predict", content=body, headers={"Content-Type": named})
    assert answer.status_code == code
    assert code == 200 or answer.json()["hint"] == "Content-Type: application/json"


def test_a_body_that_does_not_arrive_is_given_up(predictor: Predictor, worker: Worker) -> None:
    """The server's own task: TestClient has the whole body before it asks."""

    async def ask() -> list[Any]:
        app = make_app(predictor, "threshold", worker, worker.metrics, Limits(seconds=0.1))
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], "query_string": b""}
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        return sent

    first, *_ = asyncio.run(asyncio.wait_for(ask(), 10))
    assert first["status"] == 408
    assert (b"connection", b"close") in first["headers"]


@pytest.mark.parametrize(
    ("method", "path", "code"), [("GET", "/predict", 405), ("POST", "/health", 405), ("GET", "/x", 404)]
)
def test_other_requests_are_refused(client: TestClient, method: str, path: str, code: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == code
    assert answer.json()["error"]


def test_an_error_may_quote_what_is_no_text() -> None:
    answer = problem(422, "got a row with the fields \ud800", "or \udfff")
    assert json.loads(answer.body) == {"error": "got a row with the fields \\ud800", "hint": "or \\udfff"}


def test_raw_samples_are_answered(tmp_path: Path) -> None:
    """Digits as lists of numbers; the name of a file on the server is no picture."""
    overrides = tiny.as_overrides(data={"source": "digits"}, training={"run_dir": tmp_path / "run", "total_steps": 4})
    done = tiny.run_trm("train", *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    predictor = Predictor.load(tmp_path / "run", device="cpu")
    pictures = load_digits().images[:3].tolist()
    expected = predictor.ask([np.array(picture) for picture in pictures])
    made = Worker(predictor.trained, predictor.policy(), 8, 64, Metrics())
    made.start()
    with TestClient(make_app(predictor, "learned", made, made.metrics, Limits())) as client:
        answer = client.post("/predict", json={"inputs": pictures})
        assert answer.status_code == 200, answer.text
        assert [a["prediction"] for a in answer.json()["answers"]] == [a.prediction[0] for a in expected]
        junk: list[Any] = ["/etc/passwd", [], [[1, 2], [3]], 5, None, [["a"] * 8] * 8, [[99] * 8] * 8, [[10**400]]]
        for value in junk:
            refused = client.post("/predict", json={"inputs": [pictures[0], value]})
            assert refused.status_code == 422, value
            assert "sample 1" in refused.json()["error"]
        for body in (
            {"inputs": pictures, "samples": []},
            {"inputs": pictures, "kind": 3},
            {"inputs": pictures, "kind": "x"},
        ):
            assert client.post("/predict", json=body).status_code == 422
    made.close()


def test_a_model_without_an_encoder_says_so(client: TestClient) -> None:
    answer = client.post("/predict", json={"inputs": ["a text"]})
    assert answer.status_code == 422
    assert "encoder" in answer.json()["error"]


def malformed(generator: random.Random, good: str) -> bytes:
    """A good request with something wrong, somewhere."""
    record = json.loads(good)
    sample = generator.choice(record["samples"])
    kind = generator.randrange(9)
    field = generator.choice(list(sample))
    junk: list[Any] = [None, True, "x", -1, 1e400, {}, [], [[]], 10**400, "\ud800", {"a": {"b": []}}]
    if kind == 0:
        text = good.encode()
        place = generator.randrange(len(text))
        return text[:place] + bytes([generator.randrange(256)]) * generator.randrange(3) + text[place + 1 :]
    if kind == 1:
        return good.encode()[: generator.randrange(len(good))]
    if kind == 2:
        return generator.randbytes(generator.randrange(300))
    if kind == 3:
        sample[field] = generator.choice(junk)
    elif kind == 4:
        inner = sample[field]
        while isinstance(inner[0], list) and generator.random() < 0.7:
            inner = generator.choice(inner)
        inner[generator.randrange(len(inner))] = generator.choice(junk)
    elif kind == 5:
        inner = sample[field]
        inner.pop() if generator.random() < 0.5 else inner.append(inner[0])
    elif kind == 6:
        record[generator.choice(["samples", "probabilities", "decisions", "", "__proto__"])] = generator.choice(junk)
    elif kind == 7:
        del sample[field]
    else:
        return b'{"samples":' * generator.randrange(1, 3000) + good.encode()
    return json.dumps(record).encode()


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_thousand_malformed_requests(client: TestClient, fields: dict[str, Any], seed: int) -> None:
    generator = random.Random(seed)
    good = json.dumps({"samples": as_json(fields, range(2))})
    codes: dict[int, int] = {}
    for _ in range(1000 if seed else 200):
        answer = client.post("/predict", content=malformed(generator, good))
        codes[answer.status_code] = codes.get(answer.status_code, 0) + 1
        assert answer.status_code < 500, answer.text
        if answer.status_code != 200:
            assert answer.json()["error"]
    assert codes[422] > 50
    assert client.post("/predict", content=good).status_code == 200


@pytest.mark.slow
def test_memory_does_not_grow_with_malformed_requests(trained_run: Path, tmp_path: Path, fields: Any) -> None:
    process, address = start(trained_run, tmp_path)
    generator = random.Random(2)
    good = json.dumps({"samples": as_json(fields, range(2))})

    def resident() -> int:
        pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096

    sizes = []
    with httpx.Client(base_url=address, timeout=30) as client:
        for number in range(1500):
            assert client.post("/predict", content=malformed(generator, good)).status_code < 500
            if number % 500 == 499:
                sizes.append(resident())
        assert client.post("/predict", content=good).status_code == 200
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert sizes[2] - sizes[0] < 10e6, sizes  # after the first 500, which load what is loaded late


def test_an_address_that_is_taken(trained_run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = tiny.invoke("serve", trained_run, "--port", str(other.getsockname()[1]))
    assert done.returncode == 6
    assert "cannot listen on 127.0.0.1" in done.stderr


def test_missing_packages_are_named(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else original(name))
    done = tiny.invoke("serve", trained_run)
    assert done.returncode == 2
    assert "trm serve needs uvicorn" in done.stderr
    assert "pip install 'trm[serve]'" in done.stderr


def test_numbers_are_read_as_they_are_written(predictor: Predictor) -> None:
    from trm_core.serving.requests import parse

    sketches = np.random.default_rng(0).normal(size=(tiny.K, tiny.D))
    question = parse(json.dumps({"samples": [{"sketches": sketches.tolist()}]}).encode(), predictor, 5)
    assert np.array_equal(question.samples[0].sketches, sketches.astype(np.float32))
