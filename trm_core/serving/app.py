"""The HTTP side: reads bodies within limits, asks the worker, gives a client's mistake a 4xx with its reason."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from trm_core.errors import DataError
from trm_core.inference.predictor import Predictor
from trm_core.serving.metrics import Metrics
from trm_core.serving.requests import parse
from trm_core.serving.worker import QueueFull, ShuttingDown, Worker

_PATHS = ("/predict", "/health", "/metrics")


@dataclass(frozen=True)
class Limits:
    """What one request may be."""

    bytes: int = 16 << 20
    samples: int = 1024


class TooLarge(Exception):
    """The body is over the limit."""


def make_app(predictor: Predictor, policy_name: str, worker: Worker, metrics: Metrics, limits: Limits) -> FastAPI:
    """POST /predict, GET /health, GET /metrics."""
    trained = predictor.trained
    app = FastAPI(title="trm", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.stopping = False
    about = {
        "model": trained.source.name,
        "step": trained.about.get("step"),
        "policy": policy_name,
        "price": worker.engine.policy.price,
        "capsules": trained.model.data.num_capsules,
        "classes": trained.class_names or trained.model.data.num_classes,
    }

    @app.middleware("http")
    async def counted(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call(request)
        path = request.url.path if request.url.path in _PATHS else "other"
        metrics.requests.labels(path, str(response.status_code)).inc()
        if app.state.stopping:
            response.headers["Connection"] = "close"
        return response

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return problem(error.status_code, str(error.detail))

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        try:
            body = await read_body(request, limits.bytes)
            began = time.perf_counter()
            # Reading thousands of numbers must not hold up the other requests.
            question = await asyncio.to_thread(parse, body, predictor, limits.samples)
            answers = await asyncio.wrap_future(worker.submit(question.samples))
        except TooLarge:
            return problem(413, f"the body is larger than {limits.bytes} bytes", "send fewer samples at once")
        except DataError as error:
            return problem(422, error.message, error.hint)
        except QueueFull:
            return problem(503, "too many rows are waiting", "try again in a second", {"Retry-After": "1"})
        except ShuttingDown:
            return problem(503, "the server is shutting down")
        metrics.latency.observe(time.perf_counter() - began)
        records = [answer.as_record(question.probabilities) for answer in answers]
        if not question.decisions:
            for record in records:
                del record["decisions"]
        return JSONResponse({"answers": records})

    @app.get("/health")
    async def health() -> Response:
        if worker.failure is not None:
            return problem(500, "the worker has failed; see the log")
        now = {"rows_waiting": worker.rows_waiting, "rows_thinking": len(worker.engine)}
        status = "shutting down" if app.state.stopping else "ok"
        return JSONResponse({"status": status, **about, **now}, status_code=503 if app.state.stopping else 200)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return app


async def read_body(request: Request, limit: int) -> bytes:
    """The body; TooLarge as soon as there is more than `limit`, whatever the header says."""
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


def problem(code: int, message: str, hint: str | None = None, headers: dict[str, str] | None = None) -> Response:
    """An error as the client sees it."""
    return JSONResponse({"error": message, "hint": hint}, status_code=code, headers=headers)
