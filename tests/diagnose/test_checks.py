"""Each check on series and configs made by hand: it fails on its fault, and says ok beside it."""

from __future__ import annotations

import json
import platform
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from trm_core.config.schema import Config
from trm_core.diagnose.check import GROUPS, Check, Finding, Verdict
from trm_core.diagnose.checks.resources import state_bytes
from trm_core.diagnose.data_facts import DataFacts, ProbeAccuracies
from trm_core.diagnose.diagnose import diagnose, look
from trm_core.diagnose.evidence import Evidence, RunFacts, of_run
from trm_core.diagnose.fix import chosen, fixed
from trm_core.diagnose.read_metrics import read_metrics
from trm_core.diagnose.registry import CHECKS, of_group
from trm_core.diagnose.series import Metrics, Series, from_lines, together
from trm_core.diagnose.watch import Watch
from trm_core.errors import CheckFailed
from trm_core.optim.schedule import lr_factor
from trm_core.training.step import movement

STEPS = 600
HEALTHY: dict[str, dict[str, Any]] = {
    "training": {"total_steps": STEPS, "lr_warmup_steps": 20},
    "dqn": {"enabled": True, "epsilon_decay": 300, "target_tau": 0.01, "expansion_cost_per_child": 0.001},
    "arch": {"enable_capsule_expansion": True, "q_head_num_actions": 3},
}
BY_ID = {check.id: check for check in CHECKS}
ONE = np.ones(STEPS // 5)


def metrics(**changes: Any) -> Metrics:
    """A healthy run of 600 steps, a line every five, with some series replaced."""
    random = np.random.default_rng(0)
    at = np.arange(5, STEPS + 1, 5)
    line = np.linspace(0, 1, len(at))
    noise = 0.02 * random.standard_normal(len(at))
    values: dict[str, Any] = {
        "lm_loss": 1.1 - 0.8 * line + noise,
        "loss": 2 - line + noise,
        "accuracy": 0.4 + 0.5 * line + noise,
        "final_accuracy": 0.45 + 0.45 * line,
        "prediction_top_share": 0.4 * ONE,
        "exact_accuracy": 0.4 + 0.5 * np.minimum(1.5 * line, 1) + noise,
        "halt_accuracy": np.maximum(0.7, 0.4 + 0.55 * np.minimum(1.5 * line, 1)) + noise,
        "update_ratio": 2e-3 * ONE,
        "grad_norm": 1 + noise,
        "grad_clip_ratio": 0.3 * ONE,
        "grad/num_zero": 2 * ONE,
        "grad/layer_recursion": 0.1 + noise,
        "data_time_share": 0.02 * ONE,
        "logging_time_share": 0.01 * ONE,
        "samples_per_sec": 800 + 20 * noise,
        "rss_gb": 0.5 + 0.001 * random.standard_normal(len(at)),
        "dqn_buffer_size": np.minimum(at * 8, 200),
        "dqn_stored": 8 * ONE,
        "dqn_loss": 0.2 + noise,
        "dqn_td_error_mean": 0.3 + noise,
        "dqn_reward_std": 0.5 * ONE,
        "dqn_target_age": 0 * ONE,
        "dqn_target_closed": 0.01 * ONE,
        "terminal_reward": -0.5 + 1.5 * (0.45 + 0.45 * line),
        "dqn_replay_age_mean": 12 * ONE,
        "q_abs_max": 2 + noise,
        "action_0_continue": 0.4 * ONE,
        "action_1_halt": 0.4 * ONE,
        "action_2_expand": 0.2 * ONE,
        "action_expand_pct": 20 * ONE,
        "cos_sim_mean": 0.8 * ONE,
        "skipped_steps": 0 * ONE,
        **changes,
    }
    evaluated = {"accuracy": 0.85, "steps": 2.0, "opened": 0.8, **values.pop("eval", {})}
    series = {f"train/{name}": Series(at, np.asarray(value, float)) for name, value in values.items()}
    series |= {f"eval/{name}": Series(np.array([STEPS]), np.array([value])) for name, value in evaluated.items()}
    return Metrics(series)


@pytest.fixture
def data(capsule_file: Path) -> DataFacts:
    return DataFacts(capsule_file)


def evidence(data: DataFacts, sections: dict[str, dict[str, Any]], series: dict[str, Any]) -> Evidence:
    names = HEALTHY.keys() | sections.keys()
    config = tiny.make_config(**{name: {**HEALTHY.get(name, {}), **sections.get(name, {})} for name in names})
    return Evidence(config, metrics(**series), data, RunFacts(data.file.path.parent, {}, {}, {}, {}, ()), [])


def found(data: DataFacts, check: str, sections: dict[str, dict[str, Any]], series: dict[str, Any]) -> Finding:
    return look(BY_ID[check], evidence(data, sections, series)).finding


def test_a_healthy_run_raises_nothing(data: DataFacts) -> None:
    loud = [one for one in diagnose(CHECKS, evidence(data, {}, {})) if one.finding.verdict in ("fail", "warn")]
    assert [one.check.id for one in loud] in ([], ["run-ended"]), loud  # it has no status.json


GROWING = np.linspace(0, 1, STEPS // 5)
ACT = {"dqn": {"enabled": False}, "arch": {"enable_capsule_expansion": False, "q_head_num_actions": 2}}
CONCEPTS = {"arch": {"enable_concepts": True, "num_concepts": 16}}
FAULTS: list[tuple[str, dict[str, dict[str, Any]], dict[str, Any]]] = [
    ("expansion-off", {"arch": {"enable_capsule_expansion": False}}, {}),
    ("two-actions", {"arch": {"q_head_num_actions": 2, "enable_capsule_expansion": False}}, {}),
    ("loss-weights", {"loss_weights": {"lm_loss": 0.0}}, {}),
    ("loss-weights", {"loss_weights": {"dqn_loss": 0.0}}, {}),
    ("rewards-zero", {"dqn": {"reward_terminal_correct": 0.0, "reward_terminal_incorrect": 0.0}}, {}),
    ("rewards-zero", {}, {"dqn_reward_std": 0 * ONE}),
    ("rewards-zero", {}, {"dqn_reward_scale": 0.5 + 40 * GROWING}),
    ("loss-weights", {"loss_weights": {"reconstruction_loss": 1000.0}}, {"reconstruction_loss": 0.3 * ONE}),
    ("loss-weights", {"loss_weights": {"reconstruction_loss": 1000.0}}, {"lm_loss": 0 * ONE}),
    ("budget-too-small", {"dqn": {"budget": 0.5}}, {}),
    ("one-step", {"arch": {"max_steps": 1}}, {}),
    ("future-discounted", {"dqn": {"gamma": 0.3}}, {}),
    ("one-step", {}, {"ponder_cost": 4 * ONE, "action_1_halt": 1.0 * ONE}),
    ("future-discounted", {}, {"dqn_ended_early": 0.8 * ONE}),
    ("regularisation", {"training": {"label_smoothing": 0.9}}, {}),
    ("regularisation", {"arch": {"dropout": 0.9}}, {}),
    ("regularisation", {"training": {"weight_decay": 1e4}}, {}),
    ("codebook-stale", {"arch": {**CONCEPTS["arch"], "concept_decay": 0.9999}}, {}),
    ("buffer-min-size", {"dqn": {"buffer_min_size": 4000, "buffer_capacity": 5000}}, {"dqn_buffer_size": 3000 * ONE}),
    ("epsilon-zero", {"dqn": {"epsilon_start": 0.0, "epsilon_end": 0.0}}, {}),
    ("target-frozen", {"dqn": {"target_tau": None, "target_update_freq": 10_000}}, {}),
    ("target-frozen", {"dqn": {"target_tau": 1e-5}}, {}),
    ("target-frozen", {"dqn": {"target_tau": None, "target_update_freq": 50}}, {"dqn_target_age": 5 * GROWING * 100}),
    ("target-frozen", {}, {"dqn_target_closed": -0.02 * ONE}),
    ("target-frozen", {"dqn": {"target_tau": None, "target_update_freq": 50}}, {"dqn_target_closed": 0.5 * ONE}),
    ("expansion-price", {"dqn": {"expansion_cost_per_child": 1.0}}, {}),
    ("warmup-missing", {"training": {"lr_warmup_steps": 0}}, {"lm_loss": np.r_[1.1, 6.0, 4.0, 2 * np.ones(117)]}),
    ("lr-too-high", {}, {"update_ratio": 0.3 * ONE}),
    ("lr-too-high", {}, {"update_ratio": 0.04 * ONE, "lm_loss": 1 + GROWING}),
    ("dead-layer", {}, {"grad/layer_recursion": 0 * ONE}),
    ("dead-layer", {}, {"grad/layer_recursion": np.where(GROWING < 0.4, 0.1, 0)}),
    ("exploding-gradients", {}, {"grad_norm": np.exp(8 * GROWING)}),
    ("nan", {}, {"skipped_steps": np.where(GROWING > 0.5, 4, 0)}),
    ("nan", {}, {"rollbacks": np.where(GROWING > 0.5, 1, 0)}),
    ("clipping", {"training": {"grad_clip_norm": 1e-8}}, {"grad_clip_ratio": ONE}),
    ("lr-too-low", {}, {"lr": 1e-6 * ONE}),
    ("lr-too-low", {"training": {"base_lr": 2e-6, "muon_lr": 2e-6}}, {"lm_loss": 1.1 - 0.01 * np.arange(120) / 120}),
    ("dead-layer", {}, {"unmoved_weights": 0.3 * ONE}),
    ("regularisation", {}, {"final_accuracy": 0.3 * ONE}),
    ("memory-leak", {}, {"rss_gb": 0.5 + GROWING}),
    ("loader-starvation", {}, {"data_time_share": 0.6 * ONE}),
    ("logging-frequency", {}, {"logging_time_share": 0.4 * ONE}),
    ("codebook-stale", CONCEPTS, {"concept_perplexity": 1.0 * ONE, "concept_usage": 0.06 * ONE, "vq_loss": ONE}),
    ("memory-bank-empty", {"memory": {"enabled": True, "num_heads": 2}}, {"memory_filled": 0 * ONE}),
    ("memory-bank-empty", {"memory": {"enabled": True, "num_heads": 2, "capacity": 16}}, {"memory_filled": 0.02 * ONE}),
    ("dqn-not-learning", {}, {"dqn_loss": 0 * ONE}),
    ("dqn-not-learning", {}, {"dqn_buffer_size": 0 * ONE, "dqn_stored": 0 * ONE}),
    (
        "entropy-collapse",
        {},
        {
            "action_0_continue": 0.66 * ONE,
            "action_1_halt": 0.335 * ONE,
            "action_2_expand": 0.005 * ONE,
            "eval": {"steps": 3.0, "opened": 0.0},
        },
    ),
    ("terminal-reward-sign", {}, {"terminal_reward": -0.8 * ONE}),
    ("terminal-reward-sign", {}, {"q_halt_mean": -1.5 * ONE}),
    ("q-values-diverge", {}, {"q_abs_max": 80 * ONE}),
    ("replay-stale", {}, {"dqn_replay_age_mean": 300 * GROWING, "dqn_buffer_size": 200 * ONE}),
    ("expansion-never", {}, {"action_expand_pct": 0 * ONE}),
    ("q-values-diverge", {}, {"q_abs_max": np.exp(7 * GROWING)}),
    ("predictions-collapse", {}, {"prediction_top_share": 1.0 * ONE}),
    ("halting-wrong", {}, {"exact_accuracy": 0.8 * ONE, "halt_accuracy": 0.2 * ONE}),
    ("halting-wrong", {}, {"exact_accuracy": 0.3 * ONE, "halt_accuracy": 0.35 * ONE}),
    ("halting-wrong", {}, {"q_halt_loss": 3.0 * ONE, "halt_accuracy": 1.0 * ONE}),
    ("halting-wrong", {}, {"q_halt_loss": 0.01 * ONE, "halt_accuracy": 0.3 * ONE}),
    ("loss-weights", {**ACT, "loss_weights": {"q_halt_loss": 0.0}}, {}),
    ("one-step", ACT, {"action_1_halt": 1.0 * ONE, "ponder_cost": 1.0 * ONE, "exact_accuracy": GROWING}),
    ("lr-too-low", {"training": {"lr_warmup_steps": STEPS}}, {"lm_loss": 1.1 - 0.1 * GROWING}),
    ("accuracy-at-chance", {}, {"accuracy": 0.34 + 0.001 * np.cos(np.arange(120))}),
]


@pytest.mark.parametrize(("name", "sections", "series"), FAULTS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(FAULTS)])
def test_it_fails_on_its_fault(
    data: DataFacts, name: str, sections: dict[str, dict[str, Any]], series: dict[str, Any]
) -> None:
    finding = found(data, name, sections, series)
    assert finding.verdict is Verdict.FAIL, finding
    assert finding.evidence
    assert finding.why
    assert finding.why.count(". ") <= 1, "two sentences"


def test_a_replay_buffer_is_filled_by_the_rows_of_its_process(data: DataFacts) -> None:
    late = {"dqn": {"buffer_min_size": 200}, "training": {"global_batch_size": 16, "total_steps": 200}}
    seen = evidence(data, late, {})
    for seen.processes, step in ((1, "12"), (2, "25")):
        finding = look(BY_ID["buffer-min-size"], seen).finding
        assert finding.evidence.startswith(f"Q-learning begins at about step {step} of 200")
    slow = evidence(data, {**late, "dqn": {"buffer_min_size": 200, "max_age": 20}}, {})
    assert look(BY_ID["buffer-min-size"], slow).finding.verdict is Verdict.OK
    slow.processes = 2
    finding = look(BY_ID["buffer-min-size"], slow).finding
    assert finding.evidence == "dqn.max_age=20 leaves 160 transitions to draw from, and Q-learning waits for 200"
    assert finding.fix["dqn.buffer_min_size"] == 200 * 8 // 50


@pytest.mark.parametrize(("starts", "processes"), [([{"processes": 1}, {"processes": 2}], 2), ([{}], 1), ("x", 1)])
def test_how_many_processes_trained_a_run_is_read_off_its_record(
    tmp_path: Path, trained_run: Path, starts: Any, processes: int
) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    (run / "environment.json").write_text(json.dumps({"starts": starts}))
    assert of_run(run).processes == processes


@pytest.mark.parametrize(("processes", "said"), [(1, False), (4, True)])
def test_training_that_is_watched_knows_its_processes(data: DataFacts, processes: int, said: bool) -> None:
    config = tiny.make_config(
        dqn={"buffer_min_size": 200}, training={"global_batch_size": 16, "total_steps": 100, "lr_warmup_steps": 10}
    )
    warnings: list[str] = []
    watch = Watch(config, [(data.file.path, 1.0)], warnings.append, processes)
    watch.log(20, {"train/dqn_buffer_size": 100.0})
    assert ("buffer-min-size" in watch.said) == said, warnings


def test_a_rate_that_is_too_high_is_no_decay_that_is_too_strong(data: DataFacts) -> None:
    rate = {"training": {"base_lr": 3.0, "weight_decay": 0.1}}
    assert found(data, "regularisation", rate, {}).verdict is Verdict.OK


def test_norms_that_explode_are_no_limit_that_is_too_small(data: DataFacts) -> None:
    series = {"grad_norm": np.exp(18 * GROWING), "grad_clip_ratio": ONE}
    assert found(data, "exploding-gradients", {}, series).verdict is Verdict.FAIL
    assert found(data, "clipping", {}, series).verdict is not Verdict.FAIL


@pytest.mark.parametrize(("values", "told"), [(80 * ONE, Verdict.FAIL), (np.exp(7 * GROWING), Verdict.UNKNOWN)])
def test_values_that_run_away_are_no_collapse(data: DataFacts, values: Any, told: Verdict) -> None:
    """Values that were far too large from the start prefer one action, and that is what is wrong."""
    series = {
        "action_0_continue": 0.66 * ONE,
        "action_1_halt": 0.335 * ONE,
        "action_2_expand": 0.005 * ONE,
        "eval": {"steps": 3.0, "opened": 0.0},
        "q_abs_max": values,
    }
    assert found(data, "q-values-diverge", {}, series).verdict is Verdict.FAIL
    assert found(data, "entropy-collapse", {}, series).verdict is told


def test_what_an_earlier_start_said_of_weights_and_biases_is_past(data: DataFacts) -> None:
    start, warning = "run directory: runs/one", "warning: Weights & Biases: no login was found"
    for log, verdict in (((start, warning), Verdict.WARN), ((start, warning, start), Verdict.OK)):
        now = evidence(data, {"logging": {"wandb": True}}, {})
        now.run = RunFacts(data.file.path.parent, {}, {}, {}, {}, log)
        assert look(BY_ID["wandb-ready"], now).finding.verdict is verdict


def test_a_small_rate_is_right_where_it_does_its_work(data: DataFacts) -> None:
    rate = {"training": {"base_lr": 2e-6, "muon_lr": 2e-6}}
    still = {"lm_loss": 1.1 - 0.01 * GROWING}
    assert found(data, "lr-too-low", rate, still).verdict is Verdict.FAIL
    assert found(data, "lr-too-low", rate, {}).verdict is Verdict.OK, "the loss falls"
    rate["training"]["init_from"] = "runs/before"
    assert found(data, "lr-too-low", rate, still).verdict is Verdict.OK


def test_training_that_explores_may_be_harder_than_what_it_is_for(data: DataFacts) -> None:
    seldom, often = {"final_accuracy": 0.4 * ONE}, {"final_accuracy": 0.4 * ONE, "dqn_epsilon": 1 - 0.4 * GROWING}
    assert found(data, "regularisation", {}, seldom).verdict is Verdict.FAIL
    assert found(data, "regularisation", {}, often).verdict is Verdict.OK


def test_every_weight_with_a_gradient_moves_in_a_real_run(trained_run: Path) -> None:
    logged = read_metrics(trained_run / "metrics.jsonl", 20)
    for name in ("train/unmoved_weights", "train/update_ratio", "train/policy_update_ratio"):
        assert len(logged[name].finite()) > 10
    assert not logged["train/unmoved_weights"].values.any()
    assert (logged["train/update_ratio"].values > 1e-6).all()


def test_weights_in_no_optimiser_are_counted() -> None:
    weights = [torch.ones(30, requires_grad=True), torch.ones(60, requires_grad=True), torch.ones(10)]
    before = [weight.detach().clone() for weight in weights]
    for weight in weights[:2]:
        weight.grad = torch.ones_like(weight)
    with torch.no_grad():
        weights[0] += 0.1  # the second one has a gradient and stays, the third has none
    ratio, unmoved = movement(before, weights)
    assert float(ratio) == pytest.approx(0.1 * 30**0.5 / 10)
    assert float(unmoved) == 60


def test_only_halt_ends_an_episode_in_a_real_run(trained_run: Path) -> None:
    ended = read_metrics(trained_run / "metrics.jsonl", 20)["train/dqn_ended_early"].finite()
    assert len(ended) > 10
    assert not ended.values.any()


def test_a_limit_that_is_too_small_makes_no_norm_explode(data: DataFacts) -> None:
    assert found(data, "exploding-gradients", {"training": {"grad_clip_norm": 1e-8}}, {}).verdict is Verdict.OK


def test_the_rate_of_the_schedule_is_as_it_should_be(data: DataFacts) -> None:
    """Also after a rollback, at half of it."""
    steps = np.arange(5, STEPS + 1, 5)
    training = evidence(data, {}, {}).settings.training
    rate = [
        training.base_lr * lr_factor(int(n) - 1, training.lr_warmup_steps, STEPS, training.lr_min_ratio) for n in steps
    ]
    assert found(data, "lr-too-low", {}, {"lr": rate}).verdict is Verdict.OK
    assert found(data, "lr-too-low", {}, {"lr": 0.2 * np.array(rate)}).verdict is Verdict.FAIL
    halved = {"lr": 0.2 * np.array(rate), "rate_factor": 0.2 * ONE}
    assert found(data, "lr-too-low", {}, halved).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("rate", "verdict"),
    [(900 - 550 * GROWING, Verdict.WARN), (900 - 250 * GROWING, Verdict.OK), (800 + 100 * GROWING, Verdict.OK)],
)
def test_steps_that_take_longer_and_longer(data: DataFacts, rate: Any, verdict: Verdict) -> None:
    assert found(data, "slows-down", {}, {"samples_per_sec": rate}).verdict is verdict


def test_an_answer_that_is_learned_by_heart_is_not_drowned(data: DataFacts) -> None:
    """At the end its loss is next to nothing, whatever the other terms weigh."""
    weights = {"loss_weights": {"reconstruction_loss": 6.0}}
    series = {"lm_loss": np.maximum(1.1 - 2 * GROWING, 1e-4), "reconstruction_loss": 0.3 * ONE}
    assert found(data, "loss-weights", weights, series).verdict is Verdict.OK


def test_a_scale_is_as_large_as_what_was_ever_paid(data: DataFacts) -> None:
    """Rewards become smaller as answers get right; the running scale remembers."""
    series = {"dqn_reward_std": 0.9 - 0.8 * GROWING, "dqn_reward_scale": 0.9 - 0.3 * GROWING}
    assert found(data, "rewards-zero", {}, series).verdict is Verdict.OK
    unknown_yet = {"dqn_reward_std": 0.2 * ONE, "dqn_reward_scale": ONE}
    assert found(data, "rewards-zero", {}, unknown_yet).verdict is Verdict.OK


@pytest.mark.parametrize("name", ["left_out", "in_excess"])
@pytest.mark.parametrize(
    ("accuracy", "counted", "verdict"),
    [
        ([0.6, 0.6], [0.35, 0.35], Verdict.FAIL),
        ([0.9, 0.9], [0.08, 0.08], Verdict.FAIL),  # of the mistakes it is the same
        ([0.1, 0.6, 0.6, 0.6, 0.6], [0.05, 0.35, 0.35, 0.35, 0.35], Verdict.FAIL),  # long before the end
        ([0.5, 0.6], [0.45, 0.35], Verdict.WARN),  # still learning
        ([0.3, 0.4, 0.54, 0.57, 0.6], [0.35] * 5, Verdict.WARN),  # slowly, but since the middle
        ([0.6], [0.35], Verdict.WARN),
        ([0.6, 0.6], [0.05, 0.35], Verdict.WARN),  # new
        ([0.6, 0.6], [0.35, 0.05], Verdict.OK),  # has passed
        ([0.6, 0.6], [0.1, 0.1], Verdict.OK),  # most mistakes go another way
        ([1.0, 1.0], [0.0, 0.0], Verdict.OK),
        ([0.6, 0.6], [float("nan")] * 2, Verdict.OK),
    ],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_answers_that_collapse_by_half(
    data: DataFacts, name: str, accuracy: list[float], counted: list[float], verdict: Verdict, recorded: bool
) -> None:
    """`recorded`: the last evaluation is that of evaluation.json, and was not logged."""
    steps = np.arange(1, len(accuracy) + 1) * (STEPS // len(accuracy))
    shares = {"left_out": 0 * np.array(counted), "in_excess": 0 * np.array(counted), name: np.array(counted)}
    shares |= {"top_answer": 0.5 + 0 * np.array(counted), "top_label": 0.25 + 0 * np.array(counted)}
    names = ("labels_left_out", "answers_in_excess", "answer_top_share", "label_top_share")
    logged = {"accuracy": np.array(accuracy), **dict(zip(names, shares.values(), strict=True))}
    one = evidence(data, {}, {})
    keep = len(steps) - recorded
    one.metrics.series |= {f"eval/{key}": Series(steps[:keep], values[:keep]) for key, values in logged.items()}
    if recorded:
        assert one.run is not None
        last = {"accuracy": accuracy[-1], "answers": {key: values[-1] for key, values in shares.items()}}
        one.run = replace(one.run, evaluation={"step": STEPS, "scores": [last]})
    finding = look(BY_ID["predictions-collapse"], one).finding
    assert finding.verdict is verdict, finding
    if verdict is not Verdict.OK:
        assert finding.sure == ("likely" if verdict is Verdict.FAIL else "possible")
        assert finding.advice
        assert finding.why.count(". ") <= 1, "two sentences"


def test_an_empty_bank_is_no_dead_layer(data: DataFacts) -> None:
    """It gives back nothing, so no gradient reaches the query; that it is empty is what to mend."""
    bank = {"memory": {"enabled": True, "num_heads": 2}}
    empty = {"memory_filled": 0 * ONE, "grad/layer_memory": 0 * ONE}
    assert found(data, "dead-layer", bank, empty).verdict is Verdict.OK
    assert found(data, "dead-layer", bank, {**empty, "memory_filled": ONE}).verdict is Verdict.FAIL


def test_a_value_of_the_sign_of_what_is_paid(data: DataFacts) -> None:
    assert found(data, "terminal-reward-sign", {}, {"q_halt_mean": 1.5 * ONE}).verdict is Verdict.OK


def test_rows_that_began_together_halt_together(data: DataFacts) -> None:
    """Every fourth step all rows halt, later half of them at every step: both count 1 start for each end. Where no row
    halts, no steps are logged.
    """
    at = np.arange(STEPS // 5)
    late = GROWING > 0.75
    halting = np.where(late, 0.5, np.where(at % 4 == 0, 1.0, 0.0))
    counted = np.where(late, 2.0, np.where(at % 4 == 0, 4.0, np.nan))
    series = {"action_1_halt": halting, "ponder_cost": counted, "exact_accuracy": GROWING}
    assert found(data, "one-step", ACT, series).verdict is Verdict.OK


def test_rows_that_halt_at_once_because_they_are_right_are_let_be(data: DataFacts) -> None:
    for right in (0.95, 0.6):  # a halt logit is above 0 where an answer is more likely right than not
        series = {"action_1_halt": 1.0 * ONE, "ponder_cost": 1.0 * ONE, "exact_accuracy": right * ONE}
        assert found(data, "one-step", ACT, series).verdict is Verdict.OK


def test_rows_of_many_answers_halt_on_their_share(tmp_path: Path) -> None:
    """With a label per capsule the halt logit learns the share of right answers, not whether all are."""
    several = DataFacts(tiny.write_capsules(tmp_path / "several.h5", {"train": 60, "validation": 20}, label_rank=2))
    for series in (
        {"exact_accuracy": 0.3 * ONE, "halt_accuracy": 0.3 * ONE, "q_halt_loss": 0.2 * ONE},
        {"exact_accuracy": 0.3 * ONE, "action_1_halt": 1.0 * ONE, "ponder_cost": 1.0 * ONE},
    ):
        assert found(several, "halting-wrong", ACT, series).verdict is Verdict.UNKNOWN
        assert found(several, "one-step", ACT, series).verdict is Verdict.OK


def test_a_constant_is_one_for_all_lines(data: DataFacts) -> None:
    """Lines whose rows are all in the same step differ much; no constant could follow them."""
    right = np.where(np.arange(STEPS // 5) % 2 == 0, 0.05, 0.95)
    series = {"exact_accuracy": right, "halt_accuracy": right, "q_halt_loss": 0.7 * ONE}
    assert found(data, "halting-wrong", {}, series).verdict is Verdict.OK


def test_losses_of_a_run_that_diverged_are_not_certain_to_be_of_something_else(data: DataFacts) -> None:
    series = {"exact_accuracy": 0.3 * ONE, "halt_accuracy": 0.4 * ONE, "q_halt_loss": 600 * ONE}
    assert found(data, "halting-wrong", {}, series).numbers.get("q_halt_loss") is None


@pytest.mark.parametrize(("apart", "verdict"), [(1.0, Verdict.FAIL), (0.2, Verdict.UNKNOWN)])
def test_memory_of_the_first_hundred_steps_is_no_leak(apart: float, verdict: Verdict, data: DataFacts) -> None:
    given = evidence(data, {}, {"rss_gb": 0.5 + GROWING})
    given.metrics = from_lines(
        [{"step": max(1, round(apart * 5 * n)), "train/rss_gb": 0.5 + value} for n, value in enumerate(GROWING, 1)]
    )
    assert look(BY_ID["memory-leak"], given).finding.verdict is verdict


def test_a_step_that_is_there_twice_is_read_once() -> None:
    one = Series(np.array([1, 2, 2, 3]), np.array([1.0, 2.0, 9.0, 3.0]))
    other = Series(np.array([2, 3, 4]), np.array([5.0, np.nan, 6.0]))
    assert [series.values.tolist() for series in together(one, other)] == [[2.0], [5.0]]


def test_a_long_warm_up_that_learns_is_a_warning(data: DataFacts) -> None:
    half = {"training": {"lr_warmup_steps": STEPS // 2}}
    assert found(data, "lr-too-low", half, {}).verdict is Verdict.WARN
    assert found(data, "lr-too-low", {"training": {"lr_warmup_steps": STEPS // 4}}, {}).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("exact", "halts", "verdict"),
    [(0.7 * ONE, 0.7 * ONE, Verdict.OK), (0.7 * ONE, 0.55 * ONE, Verdict.WARN), (GROWING, 0.2 * ONE, Verdict.UNKNOWN)],
)
def test_halt_logits_that_follow_late_are_not_wrong(data: DataFacts, exact: Any, halts: Any, verdict: Verdict) -> None:
    series = {"exact_accuracy": exact, "halt_accuracy": halts}
    assert found(data, "halting-wrong", {}, series).verdict is verdict


def test_puzzles_that_are_learned_by_heart_show_in_whole_answers(data: DataFacts) -> None:
    whole = {"exact_accuracy": 0.95 * ONE, "eval": {"accuracy": 0.85, "exact_accuracy": 0.1}}
    finding = found(data, "overfitting", {}, whole)
    assert finding.verdict is Verdict.WARN
    assert "exact accuracy 95.0 % in training, 10.0 % held out" in finding.evidence
    assert found(data, "overfitting", {}, {**whole, "eval": {"accuracy": 0.85, "exact_accuracy": 0.45}}).verdict == "ok"


def test_a_budget_for_some_capsules_is_none_too_small(data: DataFacts) -> None:
    finding = found(data, "budget-too-small", {"dqn": {"budget": 1.5}}, {})
    assert finding.verdict is Verdict.OK
    assert "a capsule costs 1, all 4 of them 4" in finding.evidence


def test_a_budget_is_compared_with_different_prices(tmp_path: Path) -> None:
    prices = np.array([1.0, 2.0, 2.0, 3.0], np.float32)
    dear = DataFacts(tiny.write_capsules(tmp_path / "dear.h5", {"train": 20, "test": 10}, prices=prices))
    finding = found(dear, "budget-too-small", {"dqn": {"budget": 1.5}}, {})
    assert finding.verdict is Verdict.FAIL
    assert "a capsule costs 1 to 3, all 4 of them 8" in finding.evidence


@pytest.mark.parametrize(("name", "sections", "series"), FAULTS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(FAULTS)])
def test_its_fix_is_a_config_that_passes(
    data: DataFacts, name: str, sections: dict[str, dict[str, Any]], series: dict[str, Any]
) -> None:
    """The rest of the config stays as it is."""
    before = evidence(data, sections, series)
    one = look(BY_ID[name], before)
    if not one.finding.fix:
        assert one.finding.advice or name in ("dqn-not-learning",), "something to do"
        return
    config, fix = fixed(before, [one])
    after, was = config.model_dump(), before.settings.model_dump()
    for key in fix:
        section, _, leaf = key.partition(".")
        after[section][leaf] = was[section][leaf]
    assert after == was
    anew = Evidence(config, metrics(), data, before.run, [])
    assert look(BY_ID[name], anew).finding.verdict is not Verdict.FAIL


OTHER_CONFIGS: list[dict[str, dict[str, Any]]] = [
    {"training": {"total_steps": 150, "lr_warmup_steps": 15}, "dqn": {"epsilon_decay": 75, "target_tau": 0.03}},
    {"training": {"global_batch_size": 9, "optimizer": "muon", "weight_decay": 0.1}},
]


@pytest.mark.parametrize("other", OTHER_CONFIGS, ids=["short", "muon"])
@pytest.mark.parametrize(("name", "sections", "series"), FAULTS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(FAULTS)])
def test_a_fix_fails_no_other_check(
    data: DataFacts,
    name: str,
    sections: dict[str, dict[str, Any]],
    series: dict[str, Any],
    other: dict[str, dict[str, Any]],
) -> None:
    """Nor is it a config that does not load: `fixed` raises for both."""
    names = other.keys() | sections.keys()
    both = {key: {**other.get(key, {}), **sections.get(key, {})} for key in names}
    training = both["training"]
    if "lr_warmup_steps" in training:
        training["lr_warmup_steps"] = min(training["lr_warmup_steps"], training.get("total_steps", STEPS))
    given = evidence(data, both, series)
    report = [one for one in diagnose(CHECKS, given) if one.check.id == name]
    if chosen(report):
        fixed(given, report)


def test_the_fix_of_a_cause_wins(data: DataFacts) -> None:
    broken = {"training": {"base_lr": 1.0}}
    diagnoses = diagnose(CHECKS, evidence(data, broken, {"update_ratio": 0.5 * ONE, "accuracy": 0.3 * ONE}))
    assert chosen(diagnoses)["training.base_lr"] == pytest.approx(1e-3)


def test_nothing_to_fix_is_said(data: DataFacts) -> None:
    with pytest.raises(CheckFailed, match="no finding"):
        fixed(evidence(data, {}, {}), [])


def test_data_that_cannot_be_read_cost_their_checks_and_no_others(capsule_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "gone.h5"
    path.write_bytes(capsule_file.read_bytes())
    damaged = DataFacts(path)
    damaged.file.close()
    path.unlink()
    found = {one.check.id: one.finding for one in diagnose(CHECKS, evidence(damaged, {}, {}))}
    assert found["labels-constant"].verdict is Verdict.UNKNOWN
    assert "cannot be read" in found["labels-constant"].evidence
    assert found["lr-too-high"].verdict is Verdict.OK


def test_every_check_can_be_without_evidence() -> None:
    for one in diagnose(CHECKS, Evidence()):
        assert one.finding.verdict is Verdict.UNKNOWN
        assert one.finding.evidence


def test_a_young_run_raises_nothing(data: DataFacts) -> None:
    """With few lines no check may be sure of anything that takes time."""
    young = evidence(data, {}, {})
    for lines in (1, 2, 3, 5):
        cut = {n: Series(s.steps[:lines], s.values[:lines]) for n, s in metrics().series.items() if n[0] == "t"}
        young.metrics = Metrics(cut)
        loud = [d.check.id for d in diagnose(CHECKS, young) if d.finding.verdict == "fail"]
        assert not loud, (lines, loud)


def test_the_registry_is_whole() -> None:
    assert len({check.id for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert set(check.groups) <= set(GROUPS), check.id
        assert check.symptom
        assert check.source
    assert set(of_group("all")) == set(CHECKS)
    for group in GROUPS:
        assert of_group(group), group
    with pytest.raises(KeyError):
        of_group("nothing")


def test_watched_checks_need_nothing_that_a_running_process_lacks() -> None:
    watched: list[Check] = [check for check in CHECKS if check.watched]
    assert len(watched) > 10
    for check in watched:
        assert not set(check.needs) & {"run", "checkpoints"}, check.id


@pytest.mark.parametrize(("name", "sections", "series"), FAULTS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(FAULTS)])
def test_watched_checks_say_the_same_without_a_run_directory(
    data: DataFacts, name: str, sections: dict[str, dict[str, Any]], series: dict[str, Any]
) -> None:
    """As during training: a check that fell over would end the run."""
    if not BY_ID[name].watched:
        return
    alone = replace(evidence(data, sections, series), run=None, checkpoints=None)
    assert look(BY_ID[name], alone).finding.verdict is Verdict.FAIL
    for check in CHECKS:
        if check.watched:
            look(check, alone)


def test_a_run_on_another_machine_is_not_called_dead(data: DataFacts) -> None:
    """Its process cannot be seen from here."""
    status = {"state": "running", "step": 3, "total_steps": 9, "pid": 2**22 + 1}
    for host, verdict in (("elsewhere", Verdict.OK), (platform.node(), Verdict.FAIL)):
        environment = {"starts": [{"hardware": {"hostname": host}}]}
        run = RunFacts(data.file.path.parent, status, {}, environment, {}, ())
        assert look(BY_ID["run-ended"], Evidence(run=run)).finding.verdict is verdict


@pytest.mark.parametrize("code", [4, 6])
def test_a_run_that_failed_goes_on_when_the_reason_is_mended(data: DataFacts, code: int) -> None:
    """And not where the data are built again: it would be refused."""
    status = {"state": "failed", "step": 3, "total_steps": 9, "exit_code": code, "error": "row 700 holds NaN"}
    run = RunFacts(data.file.path.parent, status, {}, {}, {}, ())
    advice = look(BY_ID["run-ended"], Evidence(run=run)).finding.advice or ""
    assert "fix what it names" in advice
    assert ("training.init_from=" in advice) is (code == 4)


def test_a_gpu_that_was_left_idle_is_seen(data: DataFacts) -> None:
    one = evidence(data, {}, {})
    for gpus, verdict in (([{"name": "H100", "memory_gb": 80}], Verdict.WARN), ([], Verdict.OK)):
        environment = {"starts": [{"device": "cpu", "hardware": {"hostname": "here", "gpus": gpus}}]}
        one.run = RunFacts(data.file.path.parent, {}, {}, environment, {}, ())
        assert look(BY_ID["gpu-idle"], one).finding.verdict is verdict


def test_what_a_stranger_wrote_into_evaluation_json_is_no_bug(data: DataFacts) -> None:
    huge, never = 10**400, {"policy": "never", "accuracy": 0.5}
    strange: list[dict[str, Any]] = [
        {"policy": "", "accuracy": 1},
        {"policy": "never", "accuracy": 7, "rows": 3},
        {"policy": 3},
        {"policy": "never", "accuracy": huge},
        {**never, "rows": huge},
        {**never, "exact_by_step": [huge]},
    ]
    for score in strange:
        scores = {"scores": [{"policy": "learned", "accuracy": 0.5, "exact_accuracy": 0.5}, score]}
        run = RunFacts(data.file.path.parent, {}, {}, {}, scores, ())
        look(BY_ID["policy-loses"], Evidence(run=run))
    one = evidence(data, {}, {})
    for step, scored in ((600, None), (600, []), (600, [3]), (600, [{"answers": 3}]), ("x", [{"answers": {}}])):
        one.run = RunFacts(data.file.path.parent, {}, {}, {}, {"step": step, "scores": scored}, ())
        assert look(BY_ID["predictions-collapse"], one).finding.verdict is Verdict.OK


def test_fixes_of_one_report_do_not_contradict_each_other(data: DataFacts) -> None:
    """A cause that asks for a lower rate, and a symptom that would raise it; a limit that is in force already."""
    series = {"update_ratio": 0.3 * ONE, "grad_clip_ratio": ONE, "grad_norm": 2000.0 * ONE, "accuracy": 0.34 * ONE}
    report = diagnose(CHECKS, evidence(data, {"training": {"base_lr": 0.5, "grad_clip_norm": 1.0}}, series))
    fixes = {one.check.id: one.finding.fix for one in report if one.finding.verdict in (Verdict.FAIL, Verdict.WARN)}
    assert fixes["lr-too-high"]["training.base_lr"] < 0.5
    assert all(fix.get("training.base_lr", 0.0) < 0.5 for fix in fixes.values()), fixes
    assert all(fix.get("training.grad_clip_norm") != 1.0 for fix in fixes.values()), fixes


@pytest.mark.parametrize(("name", "sections", "series"), FAULTS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(FAULTS)])
def test_a_whole_report_moves_no_setting_both_ways(
    data: DataFacts, name: str, sections: dict[str, dict[str, Any]], series: dict[str, Any]
) -> None:
    given = evidence(data, sections, series)
    report = diagnose(CHECKS, given)
    assert name in {one.check.id for one in report if one.finding.verdict in (Verdict.FAIL, Verdict.WARN)}
    plain = given.settings.model_dump()
    raised: dict[str, set[bool]] = {}
    for one in report:
        for key, value in one.finding.fix.items():
            section, _, leaf = key.partition(".")
            now = plain[section][leaf]
            assert value != now, (one.check.id, key)
            if isinstance(value, float) and isinstance(now, float):
                raised.setdefault(key, set()).add(value > now)
    assert all(len(ways) == 1 for ways in raised.values()), raised


def test_values_that_nothing_was_learned_of_do_not_diverge(data: DataFacts) -> None:
    series = {"q_abs_max": 0 * ONE, "dqn_td_error_mean": np.nan * ONE, "dqn_buffer_size": 40.0 * ONE}
    assert found(data, "q-values-diverge", {}, series).verdict is Verdict.UNKNOWN


def test_sketches_of_nothing_are_not_reconstructed(data: DataFacts) -> None:
    weight = {"loss_weights": {"reconstruction_loss": 0.1}}
    assert found(data, "reconstruction", weight, {"cos_sim_mean": 0 * ONE}).verdict is Verdict.UNKNOWN
    assert found(data, "reconstruction", weight, {"cos_sim_mean": -0.1 * ONE}).verdict is Verdict.WARN


@pytest.mark.parametrize("kind", ["linear", "mlp", "rnn", "attention"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_stored_transition_is_as_large_as_the_buffer_makes_it(data: DataFacts, kind: str, dtype: str) -> None:
    sections = {
        "arch": {**HEALTHY["arch"], "q_head_type": kind, "q_head_hidden_dim": 96, "q_head_tokens": 3},
        "dqn": {**HEALTHY["dqn"], "buffer_dtype": dtype},
    }
    stored = tiny.make_model(tiny.make_config(**sections)).q_head.state_width * np.dtype(dtype).itemsize
    assert state_bytes(evidence(data, sections, {})) == pytest.approx(stored, abs=64)


@pytest.mark.parametrize(
    ("part", "sections", "told"),
    [
        ("reconstruction", {}, Verdict.FAIL),
        ("reconstruction", {"loss_weights": {"reconstruction_loss": 0.0}}, Verdict.OK),
        ("sketch_decoder", {"loss_weights": {"reconstruction_loss": 0.0}}, Verdict.OK),
        ("cmi_head", {"loss_weights": {"reconstruction_loss": 0.0}}, Verdict.FAIL),
        ("recursion", {"loss_weights": {"reconstruction_loss": 0.0}}, Verdict.FAIL),
    ],
)
def test_a_part_that_was_switched_off_is_not_dead(
    data: DataFacts, part: str, sections: dict[str, dict[str, Any]], told: Verdict
) -> None:
    assert found(data, "dead-layer", sections, {f"grad/layer_{part}": 0 * ONE}).verdict is told


@pytest.mark.parametrize("steps", [20_000, 100_000, 500_000, 1_000_000, 10_000_000])
def test_exploration_of_the_defaults_suffices_for_runs_of_any_length(data: DataFacts, steps: int) -> None:
    config = Config.model_validate({"training": {"total_steps": steps}, "dqn": {"enabled": True}})
    assert look(BY_ID["epsilon-zero"], Evidence(config, data=data)).finding.verdict is Verdict.OK
    never = Config.model_validate(
        {"training": {"total_steps": steps}, "dqn": {"enabled": True, "epsilon_start": 0.0, "epsilon_end": 0.0}}
    )
    assert look(BY_ID["epsilon-zero"], Evidence(never, data=data)).finding.verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("expand", "sketches", "told"), [(True, 0.5, Verdict.FAIL), (False, 0.5, Verdict.OK), (False, 0.9, Verdict.FAIL)]
)
def test_classes_that_no_sketch_tells_apart_may_be_answered_one_way(
    data: DataFacts, expand: bool, sketches: float, told: Verdict
) -> None:
    """With nothing to open, to answer one class of each pair always is right as often as anything else."""
    shares = {"labels_left_out": 0.49, "answers_in_excess": 0.49, "answer_top_share": 0.5, "label_top_share": 0.26}
    at = np.arange(100, STEPS + 1, 100)
    seen = evidence(data, {} if expand else ACT, {})
    shown = {f"eval/{name}": Series(at, value * np.ones(6)) for name, value in (shares | {"accuracy": 0.5}).items()}
    facts = DataFacts(data.file.path)
    facts.__dict__["probe"] = ProbeAccuracies(sketches, 0.95, 0.25, 500)
    judged = replace(seen, metrics=Metrics({**seen.metrics.series, **shown}), data=facts)
    assert look(BY_ID["predictions-collapse"], judged).finding.verdict is told
