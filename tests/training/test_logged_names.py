"""Every number that training logs is registered, and every registered name is logged by some run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from trm_core.training.metric_list import ALL
from trm_core.training.metric_registry import describe

# What a run on this machine cannot log.
ELSEWHERE = {"train/gpu_memory_gb", "train/gpu_reserved_gb"}


def logged(run: Path, file: Path, **sections: dict[str, object]) -> set[str]:
    overrides = tiny.as_overrides(
        **{
            **sections,
            "data": {"path": file},
            "training": {"run_dir": run, "total_steps": 24, "eval_interval": 12, **sections.get("training", {})},
        }
    )
    done = tiny.invoke("train", *overrides)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {name for line in lines for name in line} - {"step"}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Of two runs that have every part switched on between them."""
    folder = tmp_path_factory.mktemp("logged")
    file = tiny.write_capsules(folder / "concepts.h5", {"train": 64, "validation": 20}, label_rank=2, parents=True)
    everything = logged(
        folder / "everything",
        file,
        arch={
            "enable_mtp": "true",
            "enable_concepts": "true",
            "num_concepts": 6,
            "enable_hierarchical_attention": "true",
            "enable_adaptive_hcycles": "true",
            "H_cycles": 2,
            "hcycle_confidence_threshold": -0.5,
        },
        memory={"enabled": "true", "capacity": 16, "num_heads": 2, "reward_threshold": -0.5},
        dqn={
            "replay": "prioritized",
            "enable_curiosity": "true",
            "target_update_freq": 4,
            "enable_entropy_regularization": "true",
            "entropy_regularization_weight": 0.01,
        },
    )
    halting = logged(
        folder / "halting",
        tiny.write_capsules(folder / "classes.h5", {"train": 64, "validation": 20}),
        arch={"enable_capsule_expansion": "false", "q_head_num_actions": 2, "enable_q_continue": "true"},
        dqn={"enabled": "false"},
        training={"precision": "float16"},
    )
    return everything | halting


def test_a_policy_that_never_expands_has_no_expansions(tmp_path: Path) -> None:
    file = tiny.write_capsules(tmp_path / "capsules.h5", {"train": 64, "validation": 20})
    dqn = {"epsilon_start": 0, "epsilon_end": 0, "halt_exploration": 0, "expansion_cost_per_child": 50}
    settings = tiny.as_overrides(
        data={"path": file}, dqn={**dqn, "random_open_fraction": 1}, training={"run_dir": tmp_path / "run"}
    )
    assert tiny.invoke("train", *settings).returncode == 0
    lines = [line for line in tiny.metrics_without_clock(tmp_path / "run") if "train/loss" in line]
    late = [line for line in lines if line["train/action_2_expand"] == 0 and "train/num_expansions" in line][4:]
    assert late
    assert all(line["train/num_expansions"] == line["train/expansion_cost"] == 0 for line in late)
    assert sum(line["train/num_open_at_start"] for line in late) > 0


@pytest.mark.parametrize(("threshold", "left"), [(-1e9, 100.0), (1e9, 0.0)])
def test_rows_that_leave_the_h_loop_are_counted_in_both_phases(tmp_path: Path, threshold: float, left: float) -> None:
    file = tiny.write_capsules(tmp_path / "capsules.h5", {"train": 64, "validation": 20})
    arch = {"enable_adaptive_hcycles": "true", "H_cycles": 2, "hcycle_confidence_threshold": threshold}
    training = {"run_dir": tmp_path / "run", "predictor_steps": 6}
    assert tiny.invoke("train", *tiny.as_overrides(data={"path": file}, arch=arch, training=training)).returncode == 0
    lines = [line for line in tiny.metrics_without_clock(tmp_path / "run") if "train/loss" in line]
    assert [line.get("train/hcycle_exit_pct") for line in lines] == [left] * 12


def test_what_is_replayed_is_absent_and_not_0_until_there_is_enough(tmp_path: Path) -> None:
    file = tiny.write_capsules(tmp_path / "capsules.h5", {"train": 64, "validation": 20})
    dqn = {"buffer_min_size": 40, "enable_entropy_regularization": "true", "entropy_regularization_weight": 0.01}
    settings = tiny.as_overrides(data={"path": file}, dqn=dqn, training={"run_dir": tmp_path / "run"})
    assert tiny.invoke("train", *settings).returncode == 0
    lines = [line for line in tiny.metrics_without_clock(tmp_path / "run") if "train/loss" in line]
    # A line tells what the buffer holds after its step, which replayed what there was before it.
    enough = [False] + [line["train/dqn_buffer_size"] >= 40 for line in lines[:-1]]
    assert set(enough) == {False, True}
    for name in ("train/dqn_loss", "train/entropy_bonus"):
        assert [name in line for line in lines] == enough
        metric = describe(name)
        assert metric is not None
        assert "absent before" in metric.meaning


def test_what_is_logged_is_registered(names: set[str]) -> None:
    assert not [name for name in names if describe(name) is None]


def test_what_is_registered_is_logged(names: set[str]) -> None:
    wanted = {name for metric in ALL for name in (metric.members or (metric.name,))} - ELSEWHERE
    families = [name for name in wanted if "<" in name]
    stems = {name: name.split("<")[0] for name in families}
    missing = [name for name in wanted - set(families) if name not in names]
    missing += [name for name, stem in stems.items() if not any(seen.startswith(stem) for seen in names)]
    assert not missing
