"""The server with a model of puzzles: tokens, lines and grids in; answers as people read them out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from served import start

from trm_core.data.puzzles.answers import readable
from trm_core.data.puzzles.reader import open_puzzles
from trm_core.inference.predictor import Predictor
from trm_core.inference.samples import samples_of
from trm_core.serving.app import Limits, make_app
from trm_core.serving.metrics import Metrics
from trm_core.serving.worker import QueueFull, Worker


@pytest.fixture(scope="module")
def solver(sudoku_run: Path) -> Predictor:
    return Predictor.load(sudoku_run, device="cpu")


@pytest.fixture(scope="module")
def puzzles(solver: Predictor) -> Iterator[TestClient]:
    made = Worker(solver.trained, solver.policy(), 8, 64, Metrics())
    made.start()
    with TestClient(make_app(solver, "act", made, made.metrics, Limits(200_000, 50))) as found:
        yield found
    made.close()


@pytest.fixture(scope="module")
def tokens(sudoku_folder: Path) -> Any:
    return open_puzzles(sudoku_folder).read("test", slice(0, 12))["sketches"]


def test_tokens_lines_and_rows_have_the_same_answer(puzzles: TestClient, solver: Predictor, tokens: Any) -> None:
    """Rows are of digits, 0 for empty cells: token 1 is an empty cell."""
    expected = solver.predict(tokens=tokens)
    meaning = solver.trained.puzzles
    assert meaning is not None
    bodies: list[dict[str, Any]] = [
        {"samples": [{"tokens": row.tolist(), "puzzle": 0} for row in tokens]},
        {"samples": [{"tokens": row.tolist()} for row in tokens]},
        {"inputs": [readable(row, meaning) for row in tokens]},
        {"inputs": [{"input": (row - 1).reshape(4, 4).tolist(), "output": row.tolist()} for row in tokens]},
    ]
    for body in bodies:
        response = puzzles.post("/predict", json=body)
        assert response.status_code == 200, response.text
        for found, answer in zip(response.json()["answers"], expected, strict=True):
            assert found["prediction"] == list(answer.prediction)
            assert found["answer"] == readable(answer.prediction, meaning)
            assert found["halt_probability"] == pytest.approx(answer.halt_probability, abs=1e-4)
            assert found["valid"] in (True, False)
            assert ("right" in found) == ("output" in str(body))
            assert not {"opened", "decisions", "label"} & found.keys()
    assert any(found["valid"] for found in response.json()["answers"])


def test_restarts_are_the_predictors(sudoku_run: Path, tokens: Any) -> None:
    """Several requests whose rows share the calls of the model, each sample more rows than fit into some of them."""
    solver = Predictor.load(sudoku_run, device="cpu", restarts=5)
    expected = solver.predict(tokens=tokens)
    assert len({answer.restart for answer in expected}) > 1, "the first beginning is not always the best"
    made = Worker(solver.trained, solver.policy(), 8, 1000, Metrics(), solver.beginnings)
    made.start()
    with TestClient(make_app(solver, "act", made, made.metrics, Limits())) as client:
        for rows in ([0], list(range(12)), [3, 3, 7]):
            response = client.post("/predict", json={"samples": [{"tokens": tokens[row].tolist()} for row in rows]})
            assert response.status_code == 200, response.text
            for row, found in zip(rows, response.json()["answers"], strict=True):
                answer = expected[row]
                assert found["prediction"] == list(answer.prediction)
                assert (found["restart"], found["steps_in_all"]) == (answer.restart, answer.cost.steps)
                assert found["steps"] == answer.steps
                assert found["halt_probability"] == pytest.approx(answer.halt_probability, abs=1e-4)
        health = client.get("/health").json()
        assert (health["model"]["restarts"], health["queue"], health["in_flight"]) == (5, 0, 0)
        metrics = client.get("/metrics").text
    made.close()
    steps = [expected[row].cost.steps for row in (0, *range(12), 3, 3, 7)]
    assert "trm_rows_total 16.0" in metrics
    assert f"trm_reasoning_steps_total {sum(steps)}.0" in metrics


def test_every_restart_has_a_place_in_the_queue_and_in_the_batch(sudoku_run: Path, tokens: Any) -> None:
    solver = Predictor.load(sudoku_run, device="cpu", restarts=5)
    made = Worker(solver.trained, solver.policy("never"), 8, 30, Metrics(), solver.beginnings)  # not started
    samples = list(samples_of({"tokens": tokens}, solver.trained))
    first = made.submit(samples[:6])
    assert made.rows_waiting == 30
    with pytest.raises(QueueFull):
        made.submit(samples[:1])
    made.start()
    assert len(first.result(timeout=20)) == 6
    made.close()
    calls = -(-30 // 8) * solver.trained.max_steps
    assert f"trm_step_rows_count {calls}.0" in made.metrics.text().decode()
    assert made.rows_waiting == 0


def test_a_server_of_its_own_takes_restarts(sudoku_run: Path, tmp_path: Path, tokens: Any) -> None:
    process, address = start(sudoku_run, tmp_path, "--restarts", "3", "--max-steps", "2", "--policy", "never")
    try:
        body = {"samples": [{"tokens": tokens[0].tolist()}]}
        (found,) = httpx.post(f"{address}/predict", json=body, timeout=30).json()["answers"]
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert (found["steps"], found["steps_in_all"]) == (2, 6)


def test_decisions_and_probabilities(puzzles: TestClient, tokens: Any) -> None:
    body = {"samples": [{"tokens": tokens[0].tolist()}], "decisions": True, "probabilities": True}
    (found,) = puzzles.post("/predict", json=body).json()["answers"]
    assert len(found["decisions"]) == found["steps"]
    assert len(found["probabilities"]) == 16


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"samples": [{"tokens": [1] * 15}]}, "sample 0: tokens has 15 entries where 16 are expected"),
        ({"samples": [{"tokens": [1.0] * 16}]}, "sample 0: tokens[0] holds '1.0'"),
        ({"samples": [{"tokens": [True] * 16}]}, "holds 'True'"),
        ({"samples": [{"tokens": [6] * 16}]}, "sample 0: tokens: row 0, position 0: 6 is not in 0..5"),
        ({"samples": [{"tokens": [10**30] * 16}]}, "sample 0: tokens"),
        ({"samples": [{"tokens": [1] * 16, "puzzle": 1}]}, "1 is not in 0..0"),
        ({"samples": [{"tokens": [1] * 16, "puzzle": "a"}]}, "sample 0: the model knows no puzzle called 'a'"),
        ({"samples": [{"tokens": [1] * 16, "puzzle": 1.5}]}, "sample 0: puzzle holds '1.5'"),
        ({"samples": [{"sketches": [[1]]}]}, "unknown field 'sketches'"),
        ({"samples": [{"puzzle": 0}]}, "sample 0: no tokens"),
        ({"samples": [[1] * 16]}, "sample 0 is not an object"),
        ({"inputs": ["1" * 16, "12"]}, "sample 1: 2 characters, expected 16"),
        ({"inputs": [7]}, "sample 0: '7' is not a puzzle"),
        ({"inputs": [{"input": "1" * 16, "answer": 1}]}, "unknown field 'answer'"),
    ],
)
def test_what_makes_no_sense_is_named(puzzles: TestClient, body: dict[str, Any], message: str) -> None:
    response = puzzles.post("/predict", json=body)
    assert response.status_code == 422
    assert message in response.json()["error"]


def test_health_says_what_the_tokens_mean(puzzles: TestClient) -> None:
    model = puzzles.get("/health").json()["model"]
    assert model["puzzles"]["kind"] == "sudoku"
    assert model["shape"]["vocab_size"] == 6
