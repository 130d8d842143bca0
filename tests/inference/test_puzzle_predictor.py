"""The predictor on a run of puzzles: the answers of evaluation without its data, more steps, restarts, traces."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_puzzles
import torch

from trm_core.data.dataset import batches_of, open_dataset
from trm_core.data.puzzles.meaning import guessed
from trm_core.data.puzzles.reader import open_puzzles
from trm_core.data.store import open_capsules
from trm_core.errors import CheckpointError, DataError, UsageError
from trm_core.evaluation.load import load_run
from trm_core.evaluation.rollout import rollout
from trm_core.inference.load import of_run
from trm_core.inference.predictor import Predictor
from trm_core.inference.samples import samples_of
from trm_core.inference.trained import Trained
from trm_core.render.of_answer import thinking_of
from trm_core.render.thinking import CapsuleThinking, PuzzleThinking


@pytest.fixture(scope="module")
def predictor(sudoku_run: Path, sudoku_folder: Path) -> Iterator[Predictor]:
    """Loaded while the data folder is away."""
    away = sudoku_folder.with_name("away")
    sudoku_folder.rename(away)
    try:
        yield Predictor.load(sudoku_run, device="cpu")
    finally:
        away.rename(sudoku_folder)


@pytest.fixture(scope="module")
def rows(sudoku_folder: Path, predictor: Predictor) -> dict[str, np.ndarray]:
    away = sudoku_folder.with_name("away")
    return open_puzzles(away).read("test", slice(0, 30))


def with_identifiers() -> Trained:
    """Random weights with five identifiers, whose embeddings differ, and with halt logits around the threshold."""
    arch = {**tiny_puzzles.ARCH, "max_steps": 5, "halt_threshold": 0.0}
    config = tiny.make_config(arch=arch, dqn={"enabled": False})
    shape = tiny.make_shape(
        num_capsules=6, dim=0, num_children=0, checksum_dim=0, num_classes=5, label_rank=2, vocab_size=5, num_puzzles=5
    )
    model = tiny.make_model(config, shape).eval()
    with torch.no_grad():
        model.get_buffer("embedding.puzzles.weights").normal_()
        model.get_parameter("q_head.halt_net.bias").zero_()
        model.get_parameter("q_head.halt_net.weight").normal_(std=2.0, generator=torch.Generator().manual_seed(3))
    prices = np.ones(6, np.float32)
    return Trained(model, config, prices, None, False, Path("nowhere"), puzzles=guessed(5, 6, blank=2))


def tokens(n: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 5, (n, 6))


@pytest.mark.parametrize("policy", [None, "threshold", "never"])
def test_answers_are_those_of_evaluation(predictor: Predictor, rows: Any, sudoku_folder: Path, policy: str) -> None:
    confidence = 0.8
    answers = predictor.predict(tokens=rows["sketches"], policy=policy, confidence=confidence, batch=7)
    trained = predictor.trained
    batches = batches_of(open_dataset(sudoku_folder.with_name("away")), "test", 64)
    acting = predictor.policy(policy, confidence=confidence)
    outcome = rollout(trained.model, trained.config, batches, acting, torch.as_tensor(trained.prices))
    assert [list(a.prediction) for a in answers] == outcome.prediction.tolist()
    assert [a.steps for a in answers] == outcome.steps.tolist()
    assert [a.confidence for a in answers] == pytest.approx(outcome.confidence.tolist(), abs=1e-5)
    assert [a.halt_logit for a in answers] == pytest.approx(outcome.halt_logit.tolist(), abs=1e-4)
    if policy == "threshold":
        assert len({a.steps for a in answers}) > 1
    if policy is None:
        right = [list(a.prediction) == label.tolist() for a, label in zip(answers, rows["labels"], strict=True)]
        assert any(right)


def test_rows_leave_when_they_halt_and_others_take_their_places() -> None:
    trained = with_identifiers()
    together = Predictor(trained).predict(tokens=tokens(), batch=3)
    assert len({a.steps for a in together}) > 1
    for row, answer in enumerate(together):
        (alone,) = Predictor(trained).predict(tokens=tokens()[row : row + 1])
        assert (alone.prediction, alone.steps) == (answer.prediction, answer.steps)
        assert len(answer.decisions) == answer.steps


def test_identifiers_count_and_the_blank_one_stands_for_none() -> None:
    predictor = Predictor(with_identifiers())
    x = np.repeat(tokens(1), 5, 0)
    each = predictor.predict(tokens=x, puzzles=list(range(5)))
    assert len({a.halt_logit for a in each}) == 5
    (none,) = predictor.predict(tokens=x[:1], puzzles=None)
    assert none.halt_logit == pytest.approx(each[2].halt_logit, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": np.full((2, 6), 5)}, "tokens: row 0, position 0: 5 is not in 0..4"),
        ({"tokens": np.array([[0] * 6, [0, 0, -1, 0, 0, 0]])}, "row 1, position 2: -1"),
        ({"tokens": np.zeros((2, 7), int)}, "shape [2, 7], the model takes [n, 6]"),
        ({"tokens": np.zeros(6, int)}, "shape [6]"),
        ({"tokens": np.zeros((2, 6))}, "float64, expected whole numbers"),
        ({"tokens": [[0] * 6, [0]]}, "tokens: "),
        ({"tokens": np.zeros((2, 6), int), "puzzles": [0, 5]}, "puzzles: row 1: 5 is not in 0..4"),
        ({"tokens": np.zeros((2, 6), int), "puzzles": [0, -1]}, "row 1: -1"),
        ({"tokens": np.zeros((2, 6), int), "puzzles": [0]}, "shape [1], the model takes [2]"),
        ({"tokens": np.full((1, 6), 2**64 - 1, np.uint64)}, "too large"),
        ({"sketches": np.zeros((2, 6, 1))}, "no field 'sketches' in a model of puzzles"),
        ({}, "no tokens"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        Predictor(with_identifiers()).predict(**fields)
    assert message in str(caught.value)


def test_more_and_fewer_steps_than_trained_with(predictor: Predictor, rows: Any) -> None:
    x, trained = rows["sketches"], predictor.trained
    longer = Predictor(trained, max_steps=9).predict(tokens=x, policy="never")
    assert {a.steps for a in longer} == {9}
    assert trained.max_steps == 3
    usual = predictor.predict(tokens=x, policy="never")
    for a, b in zip(usual, longer, strict=True):
        assert [d.halt_probability for d in a.decisions] == pytest.approx(
            [d.halt_probability for d in b.decisions[:3]], abs=1e-5
        )
    assert {a.steps for a in Predictor(trained, max_steps=1).predict(tokens=x)} == {1}
    with pytest.raises(UsageError, match="at least one step"):
        Predictor(trained, max_steps=0)


def test_later_steps_look_like_the_last_one_to_the_model() -> None:
    """A Q-head that reads step / T must not see more than 1."""
    trained = with_identifiers()
    seen: list[int] = []
    forward = trained.model.forward

    def spy(*arguments: Any, **more: Any) -> Any:
        seen.append(int(arguments[3].max()))
        return forward(*arguments, **more)

    trained.model.forward = spy  # type: ignore[method-assign]
    Predictor(trained, max_steps=8).predict(tokens=tokens(2), policy="never")
    assert seen == [1, 2, 3, 4, 5, 5, 5, 5]


def test_of_several_beginnings_the_surest_answer_wins() -> None:
    trained, x = with_identifiers(), tokens(10)
    many = Predictor(trained, restarts=4)
    found = many.predict(tokens=x)
    assert {a.restart for a in found} != {0}
    for row, answer in enumerate(found):
        each = []
        for latents in many.beginnings.latents:
            alone = Predictor(trained)
            alone.beginnings.latents = [latents]
            each += alone.predict(tokens=x[row : row + 1])
        halts = [a.halt_logit for a in each]
        assert answer.halt_logit == pytest.approx(max(halts), abs=1e-4)
        assert answer.restart == int(np.argmax(halts))
        assert answer.prediction == each[answer.restart].prediction
        assert answer.cost.steps == sum(a.steps for a in each)
    assert each[0].in_all is None
    again = Predictor(trained, restarts=4).predict(tokens=x[::-1], batch=3)[::-1]
    assert [a.prediction for a in again] == [a.prediction for a in found]
    other = Predictor(trained, restarts=4, restart_seed=1).predict(tokens=x)
    assert [a.halt_logit for a in other] != [a.halt_logit for a in found]


def test_beginnings_are_of_the_size_of_the_stored_one() -> None:
    trained = with_identifiers()
    first, *others = Predictor(trained, restarts=3).beginnings.latents
    assert first is None
    for latents in others:
        assert latents is not None
        for drawn, stored in zip(latents, (trained.model.first_z_H, trained.model.first_z_L), strict=True):
            assert drawn.shape == (trained.model.positions, len(stored))
            assert float(drawn.square().mean()) == pytest.approx(float(stored.square().mean()), rel=1e-4)
            assert float(drawn.abs().max()) < 4 * float(stored.square().mean().sqrt())
            assert not torch.allclose(drawn[0], stored)


def test_more_restarts_than_rows_that_think_at_once() -> None:
    answers = Predictor(with_identifiers(), restarts=20).predict(tokens=tokens(3), batch=2)
    assert len(answers) == 3


def test_a_trace_has_what_was_believed_after_every_step(predictor: Predictor, rows: Any) -> None:
    (sample,) = samples_of({"tokens": rows["sketches"][:1]}, predictor.trained)
    (answer,) = predictor.stream([sample], trace=True)
    for decision in answer.decisions:
        assert decision.beliefs is not None
        assert decision.beliefs.shape == (16, 6)
        assert decision.beliefs.sum(-1) == pytest.approx(np.ones(16), abs=1e-5)
    assert decision.beliefs.argmax(-1).tolist() == list(answer.prediction)
    thinking = thinking_of(predictor.trained, sample, answer)
    assert isinstance(thinking, PuzzleThinking)
    assert thinking.manifest.kind == "sudoku"
    assert thinking.steps[-1].predicted.tolist() == list(answer.prediction)
    assert len(thinking.steps) == answer.steps
    (plain,) = predictor.stream([sample])
    assert plain.decisions[0].beliefs is None


def test_the_thinking_about_capsules_says_what_each_step_had_opened(trained_run: Path, capsule_file: Path) -> None:
    predictor = Predictor.load(trained_run, device="cpu")
    with open_capsules(capsule_file) as file:
        fields = file.read("test", slice(0, 5), ["sketches", "children"])
    for policy in ("all", "threshold"):
        for sample in samples_of(fields, predictor.trained):
            (answer,) = predictor.stream([sample], predictor.policy(policy, confidence=0.999), trace=True)
            thinking = thinking_of(predictor.trained, sample, answer)
            assert isinstance(thinking, CapsuleThinking)
            expected = [(0, 1, 2, 3)] if policy == "all" else [(), *(d.opened for d in answer.decisions)]
            for number, step in enumerate(thinking.steps):
                assert tuple(step.opened) == (expected[number] if number < len(expected) else ())
            assert int(thinking.steps[-1].belief.argmax()) == answer.prediction[0]


def test_puzzles_as_people_write_them(predictor: Predictor, rows: Any) -> None:
    text = "".join(".1234"[max(token - 1, 0)] for token in rows["sketches"][0])
    (asked,) = predictor.ask([text])
    (expected,) = predictor.predict(tokens=rows["sketches"][:1])
    assert asked.prediction == expected.prediction
    with pytest.raises(DataError, match="sample 1: 2 characters, expected 16"):
        predictor.ask([text, "12"])
    with pytest.raises(DataError, match="sample 0: puzzles: row 0: 1 is not in"):
        predictor.ask([{"input": text, "puzzle": 1}])


def test_a_run_without_the_meaning_of_its_tokens(sudoku_run: Path, tmp_path: Path) -> None:
    """By the sizes, as with folders of other builders; and a meaning that does not fit is refused."""
    run = load_run(shutil.copytree(sudoku_run, tmp_path / "run"), torch.device("cpu"))
    assert json.loads((sudoku_run / "dataset.json").read_text())["puzzles"]["kind"] == "sudoku"
    del run.data["puzzles"]
    found = of_run(run).puzzles
    assert found is not None
    assert found.kind == "maze"
    forged = replace(run, data={**run.data, "puzzles": {"kind": "sudoku"}})
    with pytest.raises(CheckpointError, match="does not describe its puzzles"):
        of_run(forged)
