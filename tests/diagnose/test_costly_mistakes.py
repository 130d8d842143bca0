"""Mistakes that cost days, each beside what looks like it and is sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_evidence import made, run_of, told

from tests.faults.capsules import generated, write
from trm_core.diagnose.check import Verdict
from trm_core.diagnose.data_facts import DataFacts

AT = np.arange(5, 401, 5)


def facts(folder: Path, field: str, rows: slice, places: object, value: float) -> DataFacts:
    """Generated capsules (2,000 training rows) with a value in some places of some rows."""
    capsules = generated(0)
    capsules.splits["train"][field][(rows, *places)] = value  # type: ignore[misc]
    write(capsules, folder / "capsules.h5")
    return DataFacts(folder / "capsules.h5")


@pytest.mark.parametrize(("field", "value"), [("sketches", -999.0), ("children", 1e6)])
def test_a_number_in_the_place_of_missing_ones(tmp_path: Path, field: str, value: float) -> None:
    """Here and there, in one place of a row in twenty."""
    found = told("placeholder-values", made(data=facts(tmp_path, field, slice(0, None, 20), (0, 0), value)))
    assert found.verdict is Verdict.FAIL
    assert f"{value:g} stands in 5 % of the training rows' {field}" in found.evidence


@pytest.mark.parametrize(
    ("rows", "value"),
    [
        (slice(0, None, 20), 0.0),  # padding
        (slice(0, None, 20), 4.0),  # an end of a scale
        (slice(0, 1), -999.0),  # once
        (slice(0, None, 2), -999.0),  # another kind of row
    ],
)
def test_what_is_no_placeholder(tmp_path: Path, rows: slice, value: float) -> None:
    capsules = generated(0)
    train = capsules.splits["train"]
    if value == 0:
        train["sketches"] += 100  # padding is far from all others then
    train["sketches"][rows, 0, 0] = value
    number = np.arange(len(train["labels"]))
    train["sketches"][:, 1, 0] = number % 50 == 0  # a rare category
    steps = [-1, *[0] * 4, *[0.01] * 5]  # of a scale, and none of them
    train["sketches"][:, 2, 0] = np.choose(number % 10, steps)
    strokes = np.clip(np.random.default_rng(0).normal(-0.3, 0.6, len(number)), 0, 1)  # mostly 0, and the scale's end
    train["sketches"][:, 3, 0] = np.where(strokes < 0.5, strokes / 30, strokes)
    write(capsules, tmp_path / "capsules.h5")
    found = told("placeholder-values", made(data=DataFacts(tmp_path / "capsules.h5")))
    assert found.verdict is Verdict.OK, found.evidence


@pytest.mark.parametrize(
    ("after", "verdict"),
    [(2.2, Verdict.FAIL), (0.5, Verdict.OK), (0.36, Verdict.OK)],  # all lost; a little, as a higher rate does; nothing
)
def test_a_run_that_goes_on_from_other_weights(after: float, verdict: Verdict) -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(AT))
    loss = np.where(AT <= 250, 0.35 + 2 * np.exp(-AT / 40), after * np.exp(-(AT - 255) / 400)) + noise
    environment = {"starts": [{"step": 0}, {"step": 250}]}
    found = told("resume-lost", made(series={"train/lm_loss": (AT, loss)}, run=run_of(environment=environment)))
    assert found.verdict is verdict, found.evidence
    if verdict is Verdict.FAIL:
        assert "when it stopped at step 250" in found.evidence
    once = run_of(environment={"starts": [{"step": 0}]})
    assert told("resume-lost", made(series={"train/lm_loss": (AT, loss)}, run=once)).verdict is Verdict.OK


@pytest.mark.parametrize(("first", "ended", "noise"), [(2.3, 2.3, 0.1), (0.69, 0.6, 0.06), (2.3, 1.2, 0.2)])
def test_noise_is_no_loss_of_weights(first: float, ended: float, noise: float) -> None:
    """What was learned may be less than a line differs from the next, and there are many starts."""
    environment = {"starts": [{"step": int(step)} for step in range(0, 400, 80)]}
    for seed in range(50):
        loss = ended + (first - ended) * np.exp(-AT / 40) + noise * np.random.default_rng(seed).standard_normal(len(AT))
        found = told("resume-lost", made(series={"train/lm_loss": (AT, loss)}, run=run_of(environment=environment)))
        assert found.verdict is Verdict.OK, f"{seed}: {found.evidence}"


@pytest.mark.parametrize(("bonus", "verdict"), [(1.0, Verdict.WARN), (0.1, Verdict.OK)])
def test_a_bonus_that_outweighs_an_answer(tmp_path: Path, bonus: float, verdict: Verdict) -> None:
    data = facts(tmp_path, "sketches", slice(0, 0), (0, 0), 0.0)
    found = told("bonus-pays", made([f"dqn.reward_expansion_bonus={bonus}", "dqn.enabled=true"], data=data))
    assert found.verdict is verdict
    assert bool(found.fix) == (verdict is Verdict.WARN)


def test_time_that_goes_outside_of_steps_is_slow_too() -> None:
    """What a step takes is the same throughout; what is done after it grows."""
    seconds = 0.05 * AT + 0.1 * AT * (AT / 400) / 2
    noise = 1 + 0.002 * np.random.default_rng(0).standard_normal(len(AT))
    series = {"train/samples_per_sec": (AT, 600 * noise), "train/steps_per_sec": (AT, AT / seconds)}
    found = told("slows-down", made(series=series, run=run_of()))
    assert found.verdict is Verdict.WARN
    assert "steps/s in the quarters" in found.evidence
    assert told("slows-down", made(series=series)).verdict is Verdict.OK, "others may mean another number by it"
    even = {**series, "train/steps_per_sec": (AT, 20 + 0 * noise)}
    assert told("slows-down", made(series=even, run=run_of())).verdict is Verdict.OK


@pytest.mark.parametrize("lines", range(9, 90, 7))
def test_evaluations_between_lines_are_no_slowing(lines: int) -> None:
    """Every second line has one before it."""
    at = 50 * np.arange(1, lines + 1)
    seconds = 0.05 * at + 10 * (at // 100)
    series = {"train/samples_per_sec": (at, 600.0), "train/steps_per_sec": (at, at / seconds)}
    found = told("slows-down", made(series=series, run=run_of()))
    assert found.verdict in (Verdict.OK, Verdict.UNKNOWN), found.evidence


def test_a_start_counts_its_own_seconds() -> None:
    """The mean begins anew with each start, from the step it went on at."""
    first, second = AT[AT <= 200], AT[AT > 200]
    slow_to_begin = 20 + 0.1 * (second - 200)  # seconds
    mean = np.concatenate([np.full(len(first), 40.0), (second - 200) / slow_to_begin])
    environment = {"starts": [{"step": 0}, {"step": 200}]}
    found = told("slows-down", made(series={"train/steps_per_sec": (AT, mean)}, run=run_of(environment=environment)))
    assert found.verdict is Verdict.OK
    assert "10 steps/s in the first half, 10 now" in found.evidence


def test_at_a_rate_of_0_no_layer_is_dead() -> None:
    series = {"train/unmoved_weights": (AT, np.where(AT > 60, 1.0, 0.0)), "train/grad/layer_answer": (AT, 0.1)}
    settings = ["training.total_steps=400", "training.lr_warmup_steps=20"]
    assert told("dead-layer", made(settings, series)).verdict is Verdict.FAIL
    series["train/lr"] = (AT, np.where(AT > 60, 0.0, 1e-3))
    assert told("dead-layer", made(settings, series)).verdict is Verdict.OK
    assert told("lr-too-low", made(settings, series)).verdict is Verdict.FAIL


def test_rows_that_are_left_in_from_debugging(tmp_path: Path) -> None:
    """23 points of 180 held-out rows are no chance."""
    capsules = generated(0)
    capsules.splits["validation"] = {name: values[:180] for name, values in capsules.splits["validation"].items()}
    write(capsules, tmp_path / "capsules.h5")
    series = {"train/final_accuracy": (AT, 1.0), "eval/accuracy": (AT[::16], 0.767)}
    found = told("overfitting", made(series=series, data=DataFacts(tmp_path / "capsules.h5")))
    assert found.verdict is Verdict.WARN, found.evidence
