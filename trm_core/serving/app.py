"""The HTTP side: reads bodies within limits, asks the worker, and answers a client's mistake with a 4xx and why."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from trm_core.errors import DataError
from trm_core.inference.predictor import Predictor
from trm_core.inference.puzzle_source import puzzle_record
from trm_core.inference.samples import Answer, Sample
from trm_core.serving.metrics import Metrics
from trm_core.serving.requests import parse
from trm_core.serving.worker import QueueFull, ShuttingDown, Worker

_PATHS = ("/predict", "/health", "/metrics")


@dataclass(frozen=True)
class Limits:
    """The limits of one request."""

    bytes: int = 16 << 20
    samples: int = 1024
    seconds: float = 60.0  # for its body to arrive


class TooLarge(Exception):
    """The body is over the limit."""


class OtherContent(Exception):
    """The body is declared to be something other than JSON."""


def make_app(predictor: Predictor, policy_name: str, worker: Worker, metrics: Metrics, limits: Limits) -> FastAPI:
    """POST /predict, GET /health, GET /metrics."""
    app = FastAPI(title="trm", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.stopping = False
    app.state.answering = 0  # requests that have arrived whole and are not answered yet
    model = describe(predictor, policy_name, worker)

    @app.middleware("http")
    async def counted(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        path = request.url.path if request.url.path in _PATHS else "other"
        code = 500  # outside of here, what a bug of ours turns into
        try:
            response = await call(request)
            code = response.status_code
        finally:
            metrics.requests.labels(path, str(code)).inc()
        if app.state.stopping:
            response.headers["Connection"] = "close"
        return response

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return problem(error.status_code, str(error.detail), headers=error.headers)

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        # If the body was not read to its end, the connection cannot be reused.
        close = {"Connection": "close"}
        try:
            require_json(request)
            async with asyncio.timeout(limits.seconds):
                body = await read_body(request, limits.bytes)
        except OtherContent as error:
            return problem(415, f"the body is of type {str(error)[:80]!r}", "Content-Type: application/json", close)
        except TooLarge:
            return problem(413, f"the body is larger than {limits.bytes} bytes", "send fewer samples at once", close)
        except TimeoutError:
            return problem(408, f"the body did not arrive within {limits.seconds:g} seconds", headers=close)
        except ClientDisconnect:
            return problem(400, "the body ends early")  # nobody receives it, but it is counted
        app.state.answering += 1
        try:
            return await answer(body)
        finally:
            app.state.answering -= 1

    async def answer(body: bytes) -> Response:
        began = time.perf_counter()
        try:
            # Parsing thousands of numbers must not hold up the other requests.
            question = await asyncio.to_thread(parse, body, predictor, limits.samples)
            answers = await asyncio.wrap_future(worker.submit(question.samples))
        except DataError as error:
            return problem(422, error.message, error.hint)
        except QueueFull:
            return problem(503, "too many rows are waiting", "try again in a second", {"Retry-After": "1"})
        except ShuttingDown:
            return problem(503, "the server is shutting down")
        metrics.latency.observe(time.perf_counter() - began)
        records = [
            record_of(predictor, sample, answer, question.probabilities)
            for sample, answer in zip(question.samples, answers, strict=True)
        ]
        if not question.decisions:
            for record in records:
                del record["decisions"]
        return JSONResponse({"answers": records})

    @app.get("/health")
    async def health() -> Response:
        if worker.failure is not None:
            return problem(500, "the worker has failed; see the log")
        status, code = ("shutting down", 503) if app.state.stopping else ("ok", 200)
        now = {"queue": worker.rows_waiting, "in_flight": len(worker.engine)}
        return JSONResponse({"status": status, "model": model, **now}, status_code=code)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return app


def record_of(predictor: Predictor, sample: Sample, answer: Answer, probabilities: bool) -> dict[str, Any]:
    """An answer as the client sees it."""
    meaning = predictor.trained.puzzles
    if meaning is None:
        return answer.as_record(probabilities)
    return puzzle_record(sample, answer, meaning, probabilities)


def describe(predictor: Predictor, policy_name: str, worker: Worker) -> dict[str, object]:
    """What a client has to know about the model."""
    trained = predictor.trained
    return {
        "name": trained.source.name,
        "step": trained.about.get("step"),
        "policy": policy_name,
        "price": worker.engine.policy.price,
        "restarts": worker.beginnings.count,
        "shape": asdict(trained.model.data),
        "classes": trained.class_names or trained.model.data.num_classes,
        **({} if trained.puzzles is None else {"puzzles": trained.puzzles.as_record()}),
    }


def require_json(request: Request) -> None:
    """A body without a content type is taken for JSON. Forms and plain text are refused because a foreign web page can
    make a browser send those here without asking.
    """
    named = request.headers.get("content-type", "application/json")
    if named.partition(";")[0].strip().lower() != "application/json":
        raise OtherContent(named)


async def read_body(request: Request, limit: int) -> bytes:
    """The body; TooLarge as soon as it exceeds `limit`, whatever the header says."""
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise TooLarge
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise TooLarge
        pieces.append(piece)
    return b"".join(pieces)


def problem(code: int, message: str, hint: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """An error as the client sees it. What it quotes from a request may not be valid text: half of a surrogate pair."""
    texts = {"error": message, "hint": hint}
    told = {name: text and text.encode(errors="backslashreplace").decode() for name, text in texts.items()}
    return JSONResponse(told, status_code=code, headers=headers)
