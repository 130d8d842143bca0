"""What sound runs log, and checks once called a fault."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.diagnose.made_evidence import made, run_of, told
from trm_core.diagnose.check import Verdict
from trm_core.diagnose.data_facts import DataFacts
from trm_core.optim.schedule import lr_factor

START = "2026-01-01 10:00:00 run directory: runs/a"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("out-of-memory", "error: out of memory on cuda:0, after step 12, allocating 2 GiB"),
        ("ranks-diverged", "step 100: weights are no longer alike in all processes"),
    ],
)
def test_what_an_earlier_start_ended_with_is_past(name: str, said: str) -> None:
    mended = run_of([START, said, START, "step 200: done"], status={"state": "done"})
    assert told(name, made(run=mended)).verdict is Verdict.OK
    assert told(name, made(run=run_of([START, START, said]))).verdict is Verdict.FAIL
    assert told(name, made(run=run_of(status={"error": said}))).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("counted", "verdict", "fix"),
    [
        (np.repeat([0, 1, 2, 3], 250), Verdict.WARN, False),  # 3 of a million, far from each other
        (np.r_[np.zeros(990), np.full(10, 20)], Verdict.WARN, False),
        (np.r_[np.zeros(999), 20], Verdict.FAIL, True),  # all of them lately
        (np.linspace(0, 2000, 1000), Verdict.FAIL, True),
    ],
)
def test_single_rows_of_nan_in_a_long_run(counted: Any, verdict: Verdict, fix: bool) -> None:
    at = np.arange(1000, 1_000_001, 1000)
    series = {"train/skipped_steps": (at, counted), "train/rollbacks": (at, 0), "train/loss": (at, 1.0)}
    finding = told("nan", made(["training.total_steps=1000000"], series))
    assert finding.verdict is verdict
    assert bool(finding.fix) is fix


@pytest.mark.parametrize(
    ("lost", "verdict"),
    [(range(100, 1000), Verdict.FAIL), ([500], Verdict.WARN), ([], Verdict.OK)],
)
def test_a_loss_that_is_lost_in_a_log_that_counts_no_skipped_steps(lost: Any, verdict: Verdict) -> None:
    """Nothing there says that weights are intact."""
    loss = np.ones(1000)
    loss[list(lost)] = np.nan
    finding = told("nan", made(series={"train/loss": (np.arange(1, 1001), loss)}))
    assert finding.verdict is verdict
    assert "skipped completely" not in finding.why
    assert bool(finding.fix) is (verdict is not Verdict.OK)


def resumed(steps: int, more: int, logged: int, begun: object) -> Any:
    """A run that was extended from `steps` to `more`, `logged` lines later."""
    at = np.arange(1, steps + logged + 1)
    rate = [3e-4 * lr_factor(t - 1, 100, steps if t <= steps else more, 0.1) for t in at.tolist()]
    series = {"train/lr": (at, rate), "train/lm_loss": (at, 1 / np.sqrt(at))}
    run = run_of(environment={"starts": [{"step": 0}, begun]})
    return [f"training.total_steps={more}", "training.lr_warmup_steps=100", "training.base_lr=3e-4"], series, run


@pytest.mark.parametrize("begun", [{"step": 1000}, {}, {"step": None}])
@pytest.mark.parametrize("logged", [10, 100])
def test_a_schedule_is_that_of_the_newest_start(begun: object, logged: int) -> None:
    overrides, series, run = resumed(1000, 8000, logged, begun)
    assert told("lr-too-low", made(overrides, series, run=run)).verdict is not Verdict.FAIL
    at, rate = series["train/lr"]
    slow = {**series, "train/lr": (at, 0.1 * np.array(rate))}
    late = told("lr-too-low", made(overrides, slow, run=run)).verdict
    assert (late is Verdict.FAIL) is (logged == 100 and begun == {"step": 1000})


def actions(last: int, **others: Any) -> dict[str, tuple[Any, Any]]:
    at = np.arange(1, last + 1)
    shares = {"action_0_continue": 0.503, "action_1_halt": 0.28, "action_2_expand": 0.217, "q_entropy": 1.0986}
    values: dict[str, Any] = {**shares, "dqn_td_error_mean": 0.3, "q_abs_max": 1.0, **others}
    logged: dict[str, tuple[Any, Any]] = {f"train/{name}": (at, value) for name, value in values.items()}
    return logged | {"eval/steps": ([last], 4.0), "eval/opened": ([last], 0.0)}


POLICY = ["training.total_steps=800", "dqn.epsilon_decay=120", "arch.max_steps=4", "dqn.epsilon_end=0.1"]
POLICY.append("training.lr_warmup_steps=80")


def test_actions_of_exploration_are_no_collapse() -> None:
    """At an epsilon of 0.55 half of the actions are CONTINUE in any policy that is not sure yet."""
    assert told("entropy-collapse", made(POLICY, actions(60))).verdict is Verdict.OK
    assert told("entropy-collapse", made(POLICY, actions(60, q_entropy=0.9))).verdict is Verdict.OK
    begun = np.where(np.arange(1, 61) > 50, 0.3, np.nan)
    sure = {"action_0_continue": 0.9, "action_1_halt": 0.05, "action_2_expand": 0.05, "q_entropy": 0.2}
    unknown = told("entropy-collapse", made(POLICY, actions(60, dqn_td_error_mean=begun, **sure)))
    assert unknown.verdict is Verdict.UNKNOWN
    assert told("entropy-collapse", made(POLICY, actions(60, **sure))).verdict is Verdict.FAIL


def test_values_that_are_alike_are_no_collapse() -> None:
    only = {"action_0_continue": 0.95, "action_1_halt": 0.03, "action_2_expand": 0.02}
    assert told("entropy-collapse", made(POLICY, actions(400, **only))).verdict is Verdict.WARN
    assert told("entropy-collapse", made(POLICY, actions(400, **only, q_entropy=0.8))).verdict is Verdict.FAIL


@pytest.mark.parametrize(("last", "verdict"), [(40, Verdict.UNKNOWN), (120, Verdict.UNKNOWN), (400, Verdict.FAIL)])
def test_halt_logits_of_the_first_steps_are_not_judged(capsule_file: Any, last: int, verdict: Verdict) -> None:
    at = np.arange(1, last + 1)
    series = {"train/exact_accuracy": (at, 0.3), "train/halt_accuracy": (at, 0.35), "train/q_halt_loss": (at, 0.8)}
    overrides = ["training.total_steps=400", "training.lr_warmup_steps=40", "dqn.enabled=false"]
    assert told("halting-wrong", made(overrides, series, DataFacts(capsule_file))).verdict is verdict


@pytest.mark.parametrize(
    ("norm", "clip", "verdict"),
    [
        (np.full(1000, 1.5), 0.01, Verdict.OK),
        (np.full(1000, 11.0), 0.1, Verdict.OK),
        (np.linspace(5, 25, 1000), 0.1, Verdict.FAIL),
        (np.exp(np.linspace(0, 6, 1000)), 1.0, Verdict.FAIL),
    ],
)
def test_a_large_norm_explodes_where_it_grows(norm: Any, clip: float, verdict: Verdict) -> None:
    overrides = [f"training.grad_clip_norm={clip}", "training.total_steps=1000", "training.lr_warmup_steps=50"]
    finding = told("exploding-gradients", made(overrides, {"train/grad_norm": (np.arange(1, 1001), norm)}))
    assert finding.verdict is verdict
    assert ("training.grad_clip_norm" in finding.fix) is (verdict is Verdict.FAIL)


def test_a_spike_is_no_reason_to_clip_harder() -> None:
    norm = np.where(np.arange(1, 1001) == 700, 5000.0, 2.0)
    overrides = ["training.total_steps=1000", "training.lr_warmup_steps=50"]
    finding = told("exploding-gradients", made(overrides, {"train/grad_norm": (np.arange(1, 1001), norm)}))
    assert finding.verdict is Verdict.WARN
    assert "training.grad_clip_norm" not in finding.fix


@pytest.mark.parametrize(("name", "late"), [("overfitting", 0.98), ("regularisation", 0.5)])
def test_training_is_compared_with_an_evaluation_of_its_time(name: str, late: float) -> None:
    """The newest one was logged in the middle; the finished run has one of its end."""
    at = np.arange(1, 201)
    series = {
        "train/final_accuracy": (at, np.where(at > 100, late, 0.7)),
        "train/dqn_epsilon": (at, 0.0),
        "eval/accuracy": ([50, 100], 0.7),
    }
    overrides = ["training.total_steps=200", "training.lr_warmup_steps=20"]
    assert told(name, made(overrides, series)).verdict is Verdict.OK
    for accuracy, verdict in ((late, {Verdict.OK}), (0.74, {Verdict.WARN, Verdict.FAIL})):
        run = run_of(evaluation={"step": 200, "scores": [{"accuracy": accuracy, "exact_accuracy": accuracy}]})
        assert told(name, made(overrides, series, run=run)).verdict in verdict, accuracy


@pytest.mark.parametrize(("loss", "verdict"), [(0.3, Verdict.OK), (1.1, Verdict.WARN)])
def test_fine_tuning_begins_where_the_loss_has_fallen(capsule_file: Any, loss: float, verdict: Verdict) -> None:
    at = np.arange(1, 201)
    series = {"train/lm_loss": (at, loss + 0.01 * np.cos(at))}
    overrides = ["training.total_steps=200", "training.lr_warmup_steps=20"]
    data = DataFacts(capsule_file)
    begun = made([*overrides, "training.init_from=runs/a"], series, data)
    assert told("loss-not-falling", begun).verdict is verdict
    assert told("loss-not-falling", made(overrides, series, data)).verdict is Verdict.WARN


def test_a_start_with_other_processes_has_a_speed_of_its_own() -> None:
    at = np.arange(1, 401)
    series = {"train/samples_per_sec": (at, np.where(at <= 200, 97.8, 45.7))}
    assert told("slows-down", made(series=series)).verdict is Verdict.WARN
    run = run_of(environment={"starts": [{"step": 0, "processes": 1}, {"step": 200, "processes": 2}]})
    assert told("slows-down", made(series=series, run=run)).verdict is Verdict.OK
    slower = {"train/samples_per_sec": (at, np.where(at <= 200, 97.8, np.where(at <= 300, 45.7, 20.0)))}
    assert told("slows-down", made(series=slower, run=run)).verdict is Verdict.WARN


def test_a_machine_that_others_use_is_no_growth() -> None:
    at = np.arange(1, 401)
    busy = np.repeat([413.0, 231.0, 256.0, 112.0], 100) - 0.01 * at
    finding = told("slows-down", made(series={"train/samples_per_sec": (at, busy)}))
    assert finding.sure == "possible"
    assert "in the quarters" not in finding.evidence
    grows = told("slows-down", made(series={"train/samples_per_sec": (at, 1 / (1 + at / 100))}))
    assert grows.verdict is Verdict.WARN
    assert "in the quarters" in grows.evidence


def test_the_luckiest_of_many_evaluations_is_no_loss() -> None:
    random = np.random.default_rng(0)
    for rows, count in ((30, 12), (60, 40), (200, 40)):
        at = np.arange(1, count + 1) * 100
        told_of = [
            told("accuracy-falls", made(series={"eval/accuracy": (at, random.binomial(rows, 0.8, count) / rows)}))
            for _ in range(30)
        ]
        assert sum(one.verdict is Verdict.WARN for one in told_of) <= 1, (rows, count)


@pytest.mark.parametrize("since", [np.full(8, 0.6), np.linspace(0.84, 0.6, 9)])
def test_what_was_learned_and_lost(since: Any) -> None:
    accuracy = np.r_[0.5, 0.8, 0.85, since]
    series = {"eval/accuracy": (np.arange(1, len(accuracy) + 1) * 100, accuracy)}
    assert told("accuracy-falls", made(series=series)).verdict is Verdict.WARN


@pytest.mark.parametrize(("threshold", "verdict"), [(0.88, Verdict.OK), (0.55, Verdict.WARN)])
def test_a_policy_that_buys_too_little_is_not_taken_for_memorising(threshold: float, verdict: Verdict) -> None:
    series = {"train/final_accuracy": (np.arange(1, 201), 0.9), "eval/accuracy": ([200], 0.5)}
    run = run_of(evaluation={"scores": [{"policy": "threshold", "accuracy": threshold, "rows": 300}]})
    overrides = ["training.total_steps=200", "training.lr_warmup_steps=20"]
    assert told("overfitting", made(overrides, series, run=run)).verdict is verdict


def test_a_gap_on_few_held_out_rows_may_be_chance(capsule_file: Any) -> None:
    """40 of them: accuracies of 70 % have a standard deviation of 7 points."""
    at = np.arange(1, 201)
    overrides = ["training.total_steps=200", "training.lr_warmup_steps=20"]
    for accuracy, verdict in ((0.9 - 0.22, Verdict.OK), (0.9 - 0.35, Verdict.WARN)):
        series = {"train/final_accuracy": (at, 0.9), "eval/accuracy": ([200], accuracy)}
        assert told("overfitting", made(overrides, series, DataFacts(capsule_file))).verdict is verdict


@pytest.mark.parametrize(
    ("rows", "training", "held_out", "verdict"),
    [
        (3, 0.723, 0.0, Verdict.UNKNOWN),
        (7, 0.95, 3 / 7, Verdict.UNKNOWN),
        (7, 0.95, 1 / 7, Verdict.WARN),
        (20, 0.9, 0.35, Verdict.WARN),
    ],
)
def test_a_handful_of_held_out_rows_tells_little(
    rows: int, training: float, held_out: float, verdict: Verdict, capsule_file: Any, monkeypatch: Any
) -> None:
    data = DataFacts(capsule_file)
    monkeypatch.setitem(data.file.rows, data.held_out, rows)
    series = {"train/final_accuracy": (np.arange(1, 201), training), "eval/accuracy": ([200], held_out)}
    overrides = ["training.total_steps=200", "training.lr_warmup_steps=20"]
    assert told("overfitting", made(overrides, series, data)).verdict is verdict


def test_how_far_the_target_network_has_come_is_no_more_than_all_of_it() -> None:
    overrides = ["dqn.enabled=true", "dqn.target_tau=0.01", "training.total_steps=200", "training.lr_warmup_steps=20"]
    finding = told("target-frozen", made(overrides))
    assert finding.verdict is Verdict.WARN
    assert "by 87 % of the way in 200 steps" in finding.evidence


@pytest.mark.parametrize(("rows", "verdict"), [(7, Verdict.OK), (700, Verdict.WARN)])
def test_one_sample_of_seven_is_no_loss_of_the_policy(rows: int, verdict: Verdict) -> None:
    scores = [
        {"policy": "learned", "accuracy": 6 / 7, "rows": rows},
        {"policy": "never", "accuracy": 1.0, "rows": rows},
    ]
    assert told("policy-loses", made(run=run_of(evaluation={"scores": scores}))).verdict is verdict


@pytest.mark.parametrize(
    ("changes", "overrides", "verdict"),
    [
        ({}, [], Verdict.WARN),
        ({"setting": 1.0}, [], Verdict.OK),  # what threshold buys is not worth this price
        ({"spent": 2.0, "steps": 3.0, "accuracy": 0.95}, [], Verdict.OK),
        ({"rows": 6}, [], Verdict.OK),  # as many right by chance
        ({}, ["dqn.gamma=0.5"], Verdict.OK),  # what comes later was to count little
        ({"setting": None}, [], Verdict.OK),
        ({"spent": "much"}, [], Verdict.OK),
    ],
)
def test_a_policy_that_earns_less_than_a_threshold_has_not_learned(
    changes: dict[str, Any], overrides: list[str], verdict: Verdict
) -> None:
    own = {"policy": "learned", "setting": 0.01, "accuracy": 0.52, "steps": 2.0, "spent": 0.0, "rows": 300} | changes
    scores = [
        own,
        {"policy": "threshold", "setting": 0.95, "accuracy": 0.98, "steps": 3.3, "spent": 2.3, "rows": 300},
        {"policy": "never", "accuracy": 0.49, "steps": 5.0, "spent": 0.0, "rows": 300},
    ]
    found = told("policy-loses", made(overrides, run=run_of(evaluation={"scores": scores})))
    assert found.verdict is verdict
    if verdict is Verdict.WARN:
        # 2.5 for a right answer, 0.01 for a step and for a price unit
        assert found.numbers["missed"] == pytest.approx(2.5 * 0.46 - 0.01 * 1.3 - 0.01 * 2.3)


def test_a_policy_of_puzzles_is_rewarded_for_whole_ones() -> None:
    scores = [
        {
            "policy": name,
            "setting": 0.01,
            "accuracy": cells,
            "exact_accuracy": exact,
            "steps": 3.0,
            "spent": 0.0,
            "rows": 300,
        }
        for name, cells, exact in (("learned", 0.96, 0.4), ("threshold", 0.99, 0.9), ("never", 0.96, 0.4))
    ]
    for puzzles, verdict in ((True, Verdict.WARN), (False, Verdict.OK)):
        found = told("policy-loses", made(run=run_of(evaluation={"scores": scores, "puzzles": puzzles})))
        assert found.verdict is verdict


def test_halting_by_the_continue_logit_gets_advice_too() -> None:
    scores = [{"policy": name, "accuracy": right, "rows": 300} for name, right in (("act", 0.4), ("never", 0.9))]
    found = told("policy-loses", made(["arch.enable_q_continue=true"], run=run_of(evaluation={"scores": scores})))
    assert found.advice == "see what others give: trm eval RUN --policy never"


@pytest.mark.parametrize(
    ("act", "by_step", "rows", "verdict"),
    [
        (0.41, [0.4, 0.97, 0.96], 300, Verdict.WARN),  # halts at once
        (0.70, [0.95, 0.9, 0.7], 300, Verdict.WARN),  # thinks on until right answers are lost
        (0.95, [0.95, 0.9, 0.7], 300, Verdict.OK),  # and this one halts in time
        (0.92, [0.95, 0.93, 0.9], 180, Verdict.OK),  # within the noise of so few rows
        (0.70, [0.95, None, 0.7], 300, Verdict.OK),
    ],
)
def test_halting_that_loses_to_a_fixed_number_of_steps_is_said(
    act: float, by_step: list[float | None], rows: int, verdict: Verdict
) -> None:
    scores = [
        {"policy": "act", "accuracy": act, "exact_accuracy": act, "rows": rows},
        {"policy": "never", "accuracy": by_step[-1], "exact_by_step": by_step, "rows": rows},
    ]
    found = told("policy-loses", made(run=run_of(evaluation={"scores": scores})))
    assert found.verdict is verdict
    if verdict is Verdict.WARN:
        assert f"trm eval RUN --policy never --max-steps {2 if act == 0.41 else 1}" in found.advice
        assert "trm eval RUN arch.halt_threshold=0" in found.advice


@pytest.mark.parametrize(("steps", "verdict"), [(40, Verdict.UNKNOWN), (150, Verdict.FAIL)])
def test_one_answer_in_the_first_steps_is_no_collapse(steps: int, verdict: Verdict, capsule_file: Any) -> None:
    """As many as a probe takes: a model whose sketches say little still answers one class."""
    series = {"train/prediction_top_share": (np.arange(1, steps + 1), 0.98)}
    overrides = ["training.total_steps=200", "training.lr_warmup_steps=20"]
    assert told("predictions-collapse", made(overrides, series, DataFacts(capsule_file))).verdict is verdict
