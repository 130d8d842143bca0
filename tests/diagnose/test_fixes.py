"""`trm diagnose --fix`: what it writes loads, and fails no other check."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny

from tests.diagnose.made_evidence import made, run_of, told
from trm_core.config import load_config_dict
from trm_core.diagnose.check import Verdict
from trm_core.diagnose.data_facts import DataFacts
from trm_core.diagnose.diagnose import diagnose
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.fix import fixed
from trm_core.diagnose.registry import CHECKS
from trm_core.diagnose.series import Metrics
from trm_core.training.features import resolve_features

SHORT = ("training.lr_warmup_steps=0", "dqn.enabled=false")


def mended(evidence: Evidence, name: str) -> Evidence:
    """Before the run that the fix of one check asks for."""
    config, _ = fixed(evidence, diagnose([check for check in CHECKS if check.id == name], evidence))
    return replace(evidence, config=config, metrics=Metrics({}), run=None)


@pytest.fixture
def equal(tmp_path: Path) -> DataFacts:
    """Children that are their sketch."""
    path = tiny.write_capsules(tmp_path / "equal.h5", {"train": 96, "validation": 40})
    with h5py.File(path, "r+") as file:
        for split in ("train", "validation"):
            file[split]["children"][:] = file[split]["sketches"][:][:, :, None]
    return DataFacts(path)


@pytest.mark.parametrize("policy", ["auto", "true"])
def test_children_that_equal_their_sketch_are_left_closed_for_good(equal: DataFacts, policy: str) -> None:
    before = made([f"dqn.enabled={policy}"], data=equal)
    assert told("children-equal-sketch", before).verdict is Verdict.FAIL
    after = mended(before, "children-equal-sketch")
    assert after.settings.arch.enable_capsule_expansion is False
    for name in ("children-equal-sketch", "expansion-off", "two-actions"):
        assert told(name, after).verdict is Verdict.OK, name


def test_how_to_build_anew_is_said_as_the_command_takes_it(equal: DataFacts, tmp_path: Path) -> None:
    path = tiny.write_capsules(tmp_path / "bare.h5", {"train": 96, "validation": 40}, m=0, checksum_dim=0)
    bare = made(["arch.enable_capsule_expansion=true"], data=DataFacts(path))
    known = tiny.invoke("build-capsules", "--help").stdout
    for name, data in (("children-equal-sketch", made(data=equal)), ("children-missing", bare)):
        finding = told(name, data)
        assert finding.verdict is Verdict.FAIL
        options = re.findall(r"--[a-z-]+", finding.advice or "")
        assert options
        assert all(option in known for option in options), options
        assert "build." not in (finding.advice or "")


def test_where_capsules_are_left_closed_nothing_is_left_to_a_policy(equal: DataFacts) -> None:
    policy = ["dqn.enabled=true", "dqn.enable_curiosity=true", "training.predictor_steps=3000"]
    after = mended(made(policy, data=equal), "children-equal-sketch")
    resolve_features(after.settings, equal.file)  # raises what training would refuse


def test_capsules_that_may_be_opened_are_no_contradiction(capsule_file: Path) -> None:
    off = ["arch.enable_capsule_expansion=false", "dqn.enabled=false", "arch.enable_q_continue=true"]
    after = mended(made(off, data=DataFacts(capsule_file)), "expansion-off")
    resolve_features(after.settings, after.file.file)


def test_a_shorter_run_has_a_predictor_that_rests_within_it() -> None:
    at = np.arange(1000, 20001, 1000)
    series = {"eval/accuracy": (at, 0.8 - 0.3 * np.linspace(0, 1, 20))}
    after = mended(made(["training.total_steps=20000", "training.predictor_steps=15000"], series), "accuracy-falls")
    assert after.settings.training.total_steps == 1000
    assert after.settings.training.predictor_steps == 750


def test_detail_that_is_worth_something_is_still_missed(capsule_file: Path) -> None:
    off = made(["arch.enable_capsule_expansion=false", "dqn.enabled=true"], data=DataFacts(capsule_file))
    assert told("expansion-off", off).verdict is Verdict.FAIL


@pytest.mark.parametrize(("rows", "ranks", "parts"), [(768, 1, 2), (9, 1, 3), (6, 2, 3), (7, 1, 7), (1, 1, None)])
def test_parts_of_a_batch_that_ran_out_of_memory(rows: int, ranks: int, parts: int | None) -> None:
    run = run_of(["error: CUDA out of memory"], environment={"starts": [{"processes": ranks}]})
    before = made([f"training.global_batch_size={rows}"], run=run)
    fix = told("out-of-memory", before).fix
    assert fix == ({} if parts is None else {"training.accumulation_steps": parts})
    if fix:
        assert mended(before, "out-of-memory").settings.training.accumulation_steps == parts


@pytest.mark.parametrize("steps", [1, 5, 15, 100, 1000])
def test_a_warm_up_fits_into_its_run(steps: int) -> None:
    after = mended(made([f"training.total_steps={steps}", *SHORT]), "warmup-missing")
    assert 1 <= after.settings.training.lr_warmup_steps <= max(steps // 2, 1)
    assert told("warmup-missing", after).verdict is Verdict.OK


def test_a_shorter_run_keeps_a_warm_up_and_a_buffer_that_fit() -> None:
    at = np.arange(1000, 20001, 1000)
    series = {"eval/accuracy": (at, 0.8 - 0.3 * np.linspace(0, 1, 20))}
    before = made(["training.total_steps=20000", "training.global_batch_size=4", "dqn.buffer_min_size=4000"], series)
    after = mended(before, "accuracy-falls").settings
    assert after.training.total_steps == 1000
    assert after.training.lr_warmup_steps == 50
    assert after.dqn.buffer_min_size < 1000, "which would have begun at the end of the shorter run"


@pytest.mark.parametrize(
    "overrides",
    [
        ["dqn.target_tau=0.001"],
        ["dqn.target_tau=0.03", "training.total_steps=150", "training.lr_warmup_steps=15"],
        ["dqn.target_tau=0.03", "training.total_steps=500", "training.lr_warmup_steps=15"],
        ["dqn.target_update_freq=10", "training.total_steps=500", "training.lr_warmup_steps=15"],
        ["training.base_lr=0", "dqn.target_tau=0.1"],
    ],
)
def test_a_target_network_is_never_made_faster_nor_frozen(overrides: list[str]) -> None:
    at = np.arange(1, 151)
    values = {"train/q_abs_max": (at, np.linspace(1, 300, 150)), "train/dqn_td_error_mean": (at, 20.0)}
    small = ["dqn.buffer_min_size=10", "dqn.epsilon_decay=100", *overrides]
    before = made(small, values)
    after = mended(before, "q-values-diverge")
    was, now = (one.settings.dqn.target_tau or 1 / one.settings.dqn.target_update_freq for one in (before, after))
    assert now <= was
    assert told("target-frozen", after).verdict is Verdict.OK


def test_a_buffer_that_waits_for_aged_transitions_gets_a_size_that_it_can_hold() -> None:
    before = made(["dqn.max_age=1", "dqn.buffer_capacity=900", "dqn.buffer_min_size=800", "dqn.enabled=true"])
    after = mended(before, "buffer-min-size")
    assert told("buffer-min-size", after).verdict is Verdict.OK


def test_what_is_learned_by_heart_gets_more_dropout_and_a_decay_that_lasts() -> None:
    at = np.arange(1, 201)
    series = {"train/final_accuracy": (at, 0.99), "eval/accuracy": ([100, 200], 0.7)}
    for optimizer, dropout, decay in (("muon", 0.3, 0.1), ("muon", 0.0, 0.1), ("muon", 0.3, 0.3), ("adamw", 0.0, 0.0)):
        overrides = [f"arch.dropout={dropout}", f"training.weight_decay={decay}", f"training.optimizer={optimizer}"]
        before = made([*overrides, "training.total_steps=200", "training.lr_warmup_steps=20"], series)
        finding = told("overfitting", before)
        assert finding.verdict is Verdict.WARN
        plain = before.settings.model_dump(mode="json")
        after = load_config_dict(plain, [f"{key}={value}" for key, value in finding.fix.items()]).config
        assert after.arch.dropout >= dropout
        assert after.training.weight_decay >= decay
        if decay < 0.3:  # it was too strong already
            assert told("regularisation", Evidence(after)).verdict is Verdict.OK
