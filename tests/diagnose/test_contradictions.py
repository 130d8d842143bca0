"""Logged numbers that cannot all be right: told where they contradict each other, and never in a sound run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_evidence import made, told

from trm_core.diagnose.check import Verdict
from trm_core.diagnose.checks.contradictions import fano
from trm_core.diagnose.data_facts import DataFacts
from trm_core.diagnose.evidence import of_run
from trm_core.model.carry import Carry
from trm_core.optim.ema import WeightAverage
from trm_core.training.measure import labels_alike
from trm_core.training.step import apart

AT = np.arange(5, 401, 5)
LINE = np.linspace(0, 1, len(AT))


@pytest.fixture
def data(capsule_file: Path) -> DataFacts:
    return DataFacts(capsule_file)


def test_a_real_run_contradicts_nothing(trained_run: Path) -> None:
    evidence = of_run(trained_run)
    for name in ("batches-unmixed", "average-behind"):
        assert told(name, evidence).verdict is Verdict.OK, told(name, evidence)
    assert told("underconfident", evidence).verdict is Verdict.UNKNOWN  # of its first steps
    alike = evidence.metrics["train/labels_alike"].values.mean()
    assert alike == pytest.approx(evidence.alike, abs=0.05)
    lag = told("average-behind", evidence).numbers
    assert 0 < lag["lag"] < lag["allowed"]


@pytest.mark.parametrize(
    ("above", "verdict"), [(0.0, Verdict.OK), (0.05, Verdict.OK), (0.15, Verdict.WARN), (0.6, Verdict.FAIL)]
)
def test_batches_of_few_classes(data: DataFacts, above: float, verdict: Verdict) -> None:
    chance = made(data=data).alike
    assert chance is not None
    alike = chance + above * (1 - chance) + 0.01 * np.sin(np.arange(len(AT)))
    assert told("batches-unmixed", made(series={"train/labels_alike": (AT, alike)}, data=data)).verdict is verdict


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=12), st.lists(st.booleans(), min_size=12, max_size=12))
def test_pairs_with_the_same_label_are_counted(labels: list[int], new: list[bool]) -> None:
    """Of the rows that begin, and have a label."""
    began = [label for label, begins in zip(labels, new, strict=False) if begins and label >= 0]
    pairs = [(one, other) for i, one in enumerate(began) for j, other in enumerate(began) if i != j]
    steps = torch.tensor([1 if begins else 2 for begins in new[: len(labels)]])
    carry = cast(Carry, SimpleNamespace(steps=steps, labels=torch.tensor(labels)[:, None]))
    name, alike, of = labels_alike(carry, 4)
    assert name == "train/labels_alike"
    assert (float(alike), float(of)) == (sum(one == other for one, other in pairs), len(pairs))


class Plain(torch.nn.Module):
    """A weight that is moved by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((5,), 10.0))


def walked(decay: float, moves: np.ndarray, warm: bool) -> dict[str, Any]:
    """What is logged of a weight that moves so [n, 5], and of its average."""
    model = Plain()
    average = WeightAverage(model, decay)
    ratios, lags = [], []
    for move in torch.from_numpy(moves).float():
        before = model.weight.detach().clone()
        with torch.no_grad():
            model.weight += move
        if not warm:
            average.updates = 10**9
        average.update()
        ratios.append(float((model.weight - before).detach().norm() / before.norm()))
        lags.append(float(apart(average.beside([model.weight]), [model.weight])))
    at = np.arange(1, len(moves) + 1)
    return {"train/update_ratio": (at, ratios), "train/average_lag": (at, lags)}


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([0.9, 0.99, 0.999, 0.9999]), st.integers(20, 300), st.floats(0, 1), st.integers(0, 1000))
def test_an_average_lies_within_its_memory(decay: float, steps: int, drift: float, seed: int) -> None:
    """However the weights move: straight on, which leaves the average farthest behind, or to and fro."""
    moves = drift * 0.01 + (1 - drift) * 0.01 * np.random.default_rng(seed).standard_normal((steps, 5))
    overrides = [f"training.ema_decay={decay}", "training.total_steps=300", "training.lr_warmup_steps=10"]
    found = told("average-behind", made(overrides, walked(decay, moves, warm=True)))
    assert found.verdict is Verdict.OK, found


@pytest.mark.parametrize(("decay", "verdict"), [(0.9, Verdict.OK), (0.997, Verdict.FAIL), (0.9995, Verdict.FAIL)])
def test_an_average_that_holds_on_to_the_first_weights(decay: float, verdict: Verdict) -> None:
    moves = 0.05 + 0.05 * np.random.default_rng(0).standard_normal((200, 5))
    series = walked(decay, moves, warm=False)
    for steps, shortens in ((200, True), (20_000, False)):  # of a long run no decay is too long by itself
        overrides = [f"training.ema_decay={decay}", f"training.total_steps={steps}", "training.lr_warmup_steps=10"]
        found = told("average-behind", made(overrides, series))
        assert found.verdict is verdict
        if verdict is Verdict.FAIL:
            assert found.fix == ({"training.ema_decay": 0.95} if shortens else {})
            assert found.advice


def answers(right: Any, loss: Any, entropy: Any) -> dict[str, Any]:
    values = {"accuracy": right, "lm_loss": loss, "prediction_entropy": entropy}
    return {f"train/{name}": (AT, value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("right", "loss", "entropy", "verdict"),
    [
        (0.9, 0.3, 0.3, Verdict.OK),
        (0.9, 0.9, 0.9, Verdict.FAIL),  # a softmax before the loss: no less than 0.55 of three classes
        (0.9, 0.9, 0.05, Verdict.OK),  # sure of what is wrong: another fault
        (0.4, 1.09, 1.09, Verdict.OK),  # hardly learned
        (0.4 + 0.5 * LINE, 1.1 - 0.8 * LINE, 1.1 - 0.8 * LINE, Verdict.OK),
    ],
)
def test_answers_that_are_right_and_unsure(
    data: DataFacts, right: Any, loss: Any, entropy: Any, verdict: Verdict
) -> None:
    series = answers(right, loss, entropy)
    assert told("underconfident", made(series=series, data=data)).verdict is verdict
    for meant in ("arch.probabilities=stablemax", "training.label_smoothing=0.2"):
        assert told("underconfident", made([meant], series, data)).verdict is Verdict.UNKNOWN


@given(st.floats(0, 1), st.integers(2, 20))
def test_no_constant_confidence_costs_less(right: float, classes: int) -> None:
    least = fano(right, classes)
    assert 0 <= least <= np.log(classes) + 1e-9
    for said in (0.1, 0.5, 0.9):
        costs = -right * np.log(said) - (1 - right) * np.log((1 - said) / (classes - 1))
        assert costs >= least - 1e-9
