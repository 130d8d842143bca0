"""A server inside this process, of the run that many tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from served import SURE

from trm_core.data.store import open_capsules
from trm_core.inference.predictor import Predictor
from trm_core.serving.app import Limits, make_app
from trm_core.serving.metrics import Metrics
from trm_core.serving.worker import Worker


@pytest.fixture(scope="module")
def predictor(trained_run: Path) -> Predictor:
    return Predictor.load(trained_run, device="cpu")


@pytest.fixture(scope="module")
def fields(capsule_file: Path) -> dict[str, Any]:
    with open_capsules(capsule_file) as file:
        return file.read("validation", slice(0, 40), ["sketches", "children"])


@pytest.fixture
def worker(predictor: Predictor) -> Iterator[Worker]:
    made = Worker(predictor.trained, predictor.policy("threshold", confidence=SURE), 8, 64, Metrics())
    made.start()
    yield made
    made.close()


@pytest.fixture
def client(predictor: Predictor, worker: Worker) -> Iterator[TestClient]:
    app = make_app(predictor, "threshold", worker, worker.metrics, Limits(200_000, 50))
    with TestClient(app, raise_server_exceptions=False) as found:
        yield found
