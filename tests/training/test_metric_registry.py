"""The registry of metrics: complete, unambiguous, light to import, and the source of the generated tables."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from trm_core.config.schema import Config
from trm_core.training.metric_list import ALL, ESSENTIAL, REFERENCES, Range
from trm_core.training.metric_registry import METRICS, README_MARKERS, describe, docs_page, healthy_text, readme_table

ROOT = Path(__file__).parent.parent.parent

# pipeline.md 7.3, "Complete Metric List", as it stands there.
PIPELINE_LIST = """
train/lm_loss train/q_halt_loss train/dqn_loss
train/reconstruction_loss train/expansion_cost
train/entropy_bonus train/vq_loss train/mtp_loss
train/accuracy train/exact_accuracy
train/dqn_reward_mean train/dqn_epsilon train/dqn_q_mean
train/dqn_td_error_mean train/dqn_buffer_size
train/action_0_continue train/action_1_halt train/action_2_expand
train/action_expand_pct train/q_expand_mean
train/num_expansions train/cos_sim_mean
train/grad_norm train/grad/mean_norm train/grad/max_norm
train/lr train/step train/epoch
"""
# The "METRICS LOGGED" and "LOGGED METRICS" of 4.6, 4.7, 4.9, 4.10, 5.4 and 5.5, and what the guides ask to print.
PIPELINE_SECTIONS = """
train/dqn_reward_std train/dqn_reward_extrinsic train/dqn_reward_intrinsic train/dqn_accuracy_improvement
train/dqn_target_mean train/grad/layer_recursion.low.0 train/grad/num_zero train/grad/num_nan train/grad/num_inf
train/grad/min_norm train/grad/mean train/grad/std train/grad_clip_ratio train/samples_per_sec train/steps_per_sec
train/ponder_cost train/q_continue_mean train/q_halt_mean train/q_entropy train/logit_abs_max train/q_abs_max
train/prediction_entropy train/dqn_td_error_expand train/gpu_memory_gb train/data_time_share
"""


def test_pipelines_names_are_kept() -> None:
    assert len(PIPELINE_LIST.split()) == 28
    assert [name for name in (PIPELINE_LIST + PIPELINE_SECTIONS).split() if describe(name) is None] == []
    assert len(ALL) >= 60


def test_every_name_has_one_entry() -> None:
    assert len(METRICS) == len(ALL)
    exact = [name for metric in ALL for name in (metric.members or (metric.name,)) if "<" not in name]
    assert len(exact) == len(set(exact))
    for name in exact:
        found = describe(name)
        assert found is not None
        assert found.name == name
    for metric in ALL:
        assert metric.name.startswith(("train/", "eval/")), metric.name
        assert metric.meaning, metric.name
        assert metric.group, metric.name
    # A family that also matches an entry of its own would give the name two meanings.
    for metric in ALL:
        if "<" not in metric.name:
            assert describe(metric.name) is METRICS[metric.name]
    assert set(ESSENTIAL) <= set(METRICS)


def test_members_of_families_are_filled_in() -> None:
    expand = describe("train/action_2_expand")
    assert expand is not None
    assert expand.meaning == "rows that chose expand, action number 2"
    depth = describe("train/mtp_accuracy_d3")
    assert depth is not None
    assert depth.meaning == "share of right answers for the position 3 places ahead"
    layer = describe("train/grad/layer_recursion.low.0")
    assert layer is not None
    assert layer.meaning.endswith("of recursion.low.0")
    assert layer.healthy is METRICS["train/grad/layer_<group>"].healthy


@pytest.mark.parametrize(
    "name",
    [
        "train/action_3_fly",
        "train/action_<n>_<name>",
        "train/mtp_accuracy_dx",
        "train/mtp_accuracy_d1x",
        "train/grad/layer_answer/more",
        "train/mtp_accuracy_d",
        "train/dqn_td_error_fly",
        "train/grad/layer_",
        "train/lm_loss2",
        "xtrain/grad/layer_answer",
        "lm_loss",
        "",
    ],
)
def test_unknown_names(name: str) -> None:
    assert describe(name) is None


def config_keys(section: type[BaseModel], prefix: str = "") -> set[str]:
    keys = set()
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys |= config_keys(field.annotation, f"{prefix}{name}.")
        else:
            keys.add(prefix + name)
    return keys


def test_ranges_say_where_they_come_from() -> None:
    references = set(REFERENCES) | set(METRICS) | config_keys(Config) | {""}
    for metric in ALL:
        healthy = metric.healthy
        if healthy is None:
            continue
        assert healthy.note.startswith(("pipeline.md", "ours: ")), metric.name
        assert healthy.of in references, metric.name
        assert (healthy.low, healthy.high, healthy.above) != (None, None, None), metric.name
        assert healthy.low is None or healthy.above is None, metric.name
        assert healthy_text(healthy)


numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(numbers, st.floats(0.125, 8, width=32), numbers, numbers)
def test_contains(value: float, reference: float, one: float, other: float) -> None:
    low, high = sorted((one, other))
    between = Range("", low=low, high=high, of="median")
    assert between.contains(value, reference) == (low * reference <= value <= high * reference)
    assert Range("", above=low).contains(value) == (value > low)
    assert Range("", high=high).contains(value) == (value <= high)
    for strange in (math.nan, math.inf, -math.inf):
        assert not between.contains(strange, reference)
        assert not Range("", above=low).contains(strange)


def test_the_generated_tables_are_up_to_date() -> None:
    again = "run: python -m trm_core.training.metric_registry"
    assert (ROOT / "docs/metrics.md").read_text() == docs_page(), f"{again} docs > docs/metrics.md"
    begin, end = README_MARKERS
    readme = (ROOT / "README.md").read_text()
    assert readme.count(begin) == readme.count(end) == 1
    between = readme.split(begin)[1].split(end)[0]
    assert between.strip("\n") == readme_table().strip("\n"), (
        f"{again} readme, and put what it prints between the markers in README.md"
    )
    assert all(f"`{metric.name}`" in docs_page() for metric in ALL)


@pytest.mark.parametrize("what", ["docs", "readme"])
def test_the_command_prints_them_without_heavy_imports(what: str) -> None:
    code = (
        "import runpy, sys; sys.argv = ['x', sys.argv[1]]\n"
        "runpy.run_module('trm_core.training.metric_registry', run_name='__main__')\n"
        "heavy = {'torch', 'numpy', 'h5py', 'sklearn', 'pydantic', 'wandb'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, what], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (docs_page() if what == "docs" else readme_table())
