"""The memory of a step: the estimate against what torch's profiler sees, and who holds it."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch.profiler import ProfilerActivity

from trm_core.config.schema import Config
from trm_core.prepare import Prepared, RunHooks, prepare
from trm_core.profiling.memory import MemoryUse, memory_of
from trm_core.profiling.steps import Stepper
from trm_core.training import traced_memory
from trm_core.training.estimate import estimate_memory, trace_at
from trm_core.training.traced_memory import trace

BANK = {"enabled": True, "capacity": 4096, "top_k": 2, "num_heads": 2}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "memory bank": {"memory": BANK},
    "concepts": {"arch": {"enable_concepts": True, "num_concepts": 500}},
    "no dqn": {"dqn": {"enabled": False}, "arch": {"enable_capsule_expansion": False}},
    "no average": {"training": {"ema_decay": None}},
    "muon": {"training": {"optimizer": "muon"}},
    "parts": {"training": {"global_batch_size": 64, "accumulation_steps": 4}, "dqn": {"buffer_capacity": 1000}},
    "large replay": {"dqn": {"buffer_capacity": 50_000, "buffer_dtype": "float16"}},
    "large TD batch": {"dqn": {"batch_size": 4096}},
    "wide": {"arch": {"hidden_size": 64, "num_layers": 2}, "training": {"global_batch_size": 96}},
    "curiosity": {"dqn": {"enable_curiosity": True}},
    "recurrent": {"arch": {"q_head_type": "rnn"}, "dqn": {"sequence_length": 3}},
}

LONG = ("muon", "parts", "no average", "large TD batch", "wide", "curiosity", "recurrent")


def prepared_with(data: Path, **sections: dict[str, Any]) -> Prepared:
    if "training" in sections and "global_batch_size" in sections["training"]:
        sections = {**sections, "dqn": {"buffer_capacity": 1000, **sections.get("dqn", {})}}
    return prepare(tiny.make_config(data={"path": str(data)}, **sections), RunHooks())


def measured(prepared: Prepared) -> MemoryUse:
    with closing(Stepper(prepared.config, prepared.features, prepared.files, torch.device("cpu"))) as stepper:
        stepper.warm()
        return memory_of(stepper.trainer.state, lambda: stepper.take(6), [ProfilerActivity.CPU])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in VARIANTS]
)
def test_the_estimate_is_what_a_step_needs(name: str, capsule_file: Path) -> None:
    prepared = prepared_with(capsule_file, **VARIANTS[name])
    estimate = estimate_memory(prepared.config, prepared.features)
    use = measured(prepared)
    assert estimate.step_peak == pytest.approx(use.peak, rel=0.15)
    owners = {"parameters": "parameters", "optimizer": "optimiser state", "average": "average"}
    owners |= {"target": "target network", "memory_bank": "memory bank"}
    for field, owner in owners.items():
        assert getattr(estimate, field) == use.owners[owner], owner
    assert estimate.carry == pytest.approx(use.owners["carry"], rel=0.15)
    assert estimate.replay == pytest.approx(use.owners["replay"], rel=0.15)


def test_nothing_is_allocated_for_an_estimate(capsule_file: Path) -> None:
    # Weights of 100 GB, which no machine of ours could hold.
    huge: dict[str, dict[str, Any]] = {"arch": {"hidden_size": 40_000, "num_heads": 2, "ffn_expansion": 4.0}}
    prepared = prepared_with(capsule_file, **huge)
    assert estimate_memory(prepared.config, prepared.features).parameters > 50e9


def test_memory_is_traced_once_for_many_batch_sizes(capsule_file: Path) -> None:
    prepared = prepared_with(capsule_file)
    shape, found = prepared.features.shape, []
    for rows in (64, 100, 256):
        at = trace_at(prepared.config, prepared.features, rows, "cpu")
        whole = trace(prepared.config, shape, True, prepared.features.cmi, False, rows)
        assert at.peak == pytest.approx(whole.peak, rel=0.02)
        found.append(at.peak)
    assert found == sorted(found)


def test_parts_share_a_trace(capsule_file: Path) -> None:
    prepared = prepared_with(capsule_file)
    shape, before = prepared.features.shape, traced_memory._trace.cache_info().misses
    found = []
    for parts in (2, 3, 6):
        changed = prepared.config.training.model_copy(update={"accumulation_steps": parts})
        config = prepared.config.model_copy(update={"training": changed})
        found.append(trace(config, shape, True, prepared.features.cmi, False, 20))
    assert found[0] == found[1] == found[2]
    assert traced_memory._trace.cache_info().misses - before <= 1


def test_a_gpu_keeps_more_than_a_processor(capsule_file: Path) -> None:
    """The forms by hand, which write less, are a processor's."""
    prepared = prepared_with(capsule_file, arch={"hidden_size": 64})
    there, here = (trace_at(prepared.config, prepared.features, 64, device).peak for device in ("cuda", "cpu"))
    assert 1.02 * here < there < 2 * here


def with_batch(config: Config, rows: int) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update={"global_batch_size": rows})})


def test_a_larger_batch_never_needs_less(capsule_file: Path) -> None:
    # Or the search for a batch that fits would miss it.
    prepared = prepared_with(capsule_file, arch={"hidden_size": 64})
    sizes = [estimate_memory(with_batch(prepared.config, rows), prepared.features).total for rows in range(8, 80, 8)]
    assert sizes == sorted(sizes)


def test_the_peak_is_shared_among_owners(capsule_file: Path) -> None:
    use = measured(prepared_with(capsule_file))
    assert sum(use.owners.values()) == use.peak
    assert use.owners["activations"] > 0
    assert max(size for _, size in use.timeline) == use.peak
    times = [when for when, _ in use.timeline]
    assert times == sorted(times)


def test_gradients_are_counted_where_the_update_is_the_peak(capsule_file: Path) -> None:
    # One row through a wide network: weights are most of it.
    prepared = prepared_with(capsule_file, arch={"hidden_size": 128, "num_layers": 2, "ffn_expansion": 4.0})
    use = measured(prepared)
    assert use.owners["gradients"] > 0.8 * sum(p.nbytes for p in weights(prepared))
    assert estimate_memory(prepared.config, prepared.features).gradients == use.owners["gradients"]


def weights(prepared: Prepared) -> list[torch.Tensor]:
    with closing(Stepper(prepared.config, prepared.features, prepared.files, torch.device("cpu"))) as stepper:
        return list(stepper.trainer.state.model.parameters())


def test_command(capsule_file: Path) -> None:
    overrides = tiny.as_overrides(data={"path": capsule_file})
    done = tiny.invoke("profile", *overrides, "--estimate", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["total"] == sum(found["bytes"].values()) == found["step_peak"] + found["bytes"]["snapshot"]
    text = tiny.invoke("profile", *overrides, "--estimate")
    assert "peak of a step" in text.stdout
