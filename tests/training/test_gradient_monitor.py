"""The fused gradient statistics against a plain loop, planted NaN, Inf and zeros, and the partition of parameters."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trm_core.optim.build import build_optimizers
from trm_core.training.gradient_monitor import GradientMonitor, group_of
from trm_core.training.metric_registry import describe


class Small(nn.Module):
    """Parameters of several shapes and depths, among them one of the model itself and an empty one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.embedding = nn.Linear(3, 5)
        self.recursion = nn.ModuleDict({"low": nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(5, 5)] * 2)})})
        self.q_head = nn.ModuleDict({"value_net": nn.Linear(5, 2), "halt_net": nn.Linear(5, 1)})
        self.nothing = nn.ParameterList([torch.empty(0, 4)])


def naive(model: nn.Module) -> dict[str, float]:
    """The same numbers, parameter by parameter, in float64."""
    norms, elements = [], []
    groups: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        values = gradient.double().flatten().tolist()
        norm = math.sqrt(sum(value * value for value in values))
        norms.append(norm)
        elements += values
        groups[group_of(name)] = groups.get(group_of(name), 0.0) + norm * norm
    mean = sum(elements) / len(elements)
    return {
        "train/grad/mean_norm": sum(norms) / len(norms),
        "train/grad/max_norm": max(norms),
        "train/grad/min_norm": min(norms),
        "train/grad/num_zero": sum(norm == 0 for norm in norms),
        "train/grad/num_nan": 0,
        "train/grad/num_inf": 0,
        "train/grad/mean": mean,
        "train/grad/std": math.sqrt(sum((value - mean) ** 2 for value in elements) / len(elements)),
        **{f"train/grad/layer_{group}": math.sqrt(square) for group, square in groups.items()},
    }


# A norm in float32 takes squares, so values whose squares underflow are left out.
values = st.one_of(st.just(0.0), st.floats(2.0**-40, 2.0**40, width=32), st.floats(-(2.0**40), -(2.0**-40), width=32))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_equals_a_plain_loop(data: st.DataObject) -> None:
    model = Small()
    monitor = GradientMonitor(model)
    for parameter in model.parameters():
        kind = data.draw(st.sampled_from(["none", "zero", "random", "drawn"]))
        if kind == "zero":
            parameter.grad = torch.zeros_like(parameter)
        elif kind == "random":
            seed = data.draw(st.integers(0, 1000))
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        elif kind == "drawn":
            parameter.grad = torch.full_like(parameter, data.draw(values))
    got, expected = monitor.measure().as_dict(), naive(model)
    assert got.keys() == expected.keys()
    size = sum(parameter.numel() for parameter in model.parameters())
    root = expected["train/grad/max_norm"] * math.sqrt(len(monitor.parameters) / size)
    for name, value in expected.items():
        # Mean and spread are differences of sums over everything, so their error is relative to its size.
        slack = 1e-3 * root if name in ("train/grad/mean", "train/grad/std") else 0.0
        assert float(got[name]) == pytest.approx(value, rel=1e-4, abs=slack), name


def real_gradients(seed: int = 0, **sections: dict[str, Any]) -> nn.Module:
    """The tiny model with a random gradient for every parameter."""
    model = tiny.make_model(tiny.make_config(**sections), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("arch", [{}, {"tied": False, "num_layers": 2}])
def test_equals_a_plain_loop_on_the_model(arch: dict[str, Any]) -> None:
    model = real_gradients(arch=arch)
    got = GradientMonitor(model).measure().as_dict()
    assert {name: float(value) for name, value in got.items()} == pytest.approx(naive(model), rel=1e-4, abs=1e-5)


def test_planted_faults_are_counted_where_they_are() -> None:
    model = real_gradients(arch={"num_layers": 2})
    parameters = dict(model.named_parameters())
    monitor = GradientMonitor(model)

    def plant(name: str, value: float) -> None:
        gradient = parameters[name].grad
        assert gradient is not None
        gradient.view(-1)[-1] = value

    plant("recursion.low.blocks.1.ffn.down.weight", math.nan)
    plant("recursion.low.blocks.1.ffn.gate_up.weight", math.inf)
    plant("cmi_head.net.output.bias", -math.inf)
    # Both in one parameter count as NaN.
    plant("answer.output.weight", math.inf)
    parameters["answer.output.weight"].grad.view(-1)[0] = math.nan  # type: ignore[union-attr]
    parameters["q_head.halt_net.hidden.weight"].grad.zero_()  # type: ignore[union-attr]
    parameters["q_head.halt_net.hidden.bias"].grad = None
    got = {name.removeprefix("train/grad/"): float(value) for name, value in monitor.measure().as_dict().items()}
    assert (got["num_nan"], got["num_inf"], got["num_zero"]) == (2, 2, 2)
    assert math.isnan(got["layer_recursion.low.1"])
    assert math.isnan(got["layer_answer"])
    assert got["layer_cmi_head"] == math.inf
    whole = [name for name, value in got.items() if name.startswith("layer_") and math.isfinite(value)]
    assert set(whole) == {
        "layer_embedding",
        "layer_recursion.low.0",
        "layer_reconstruction",
        "layer_sketch_decoder",
        "layer_q_head.value_net",
        "layer_q_head.halt_net",
    }
    assert all(got[name] > 0 for name in whole)


def test_no_gradient_at_all() -> None:
    model = Small()
    stats = GradientMonitor(model, [model.parameters(), []]).measure()
    got = stats.as_dict()
    assert float(got.pop("train/grad/num_zero")) == len(list(model.parameters()))
    assert all(float(value) == 0 for value in got.values())
    assert [float(total) for total in stats.totals] == [0, 0]


@pytest.mark.parametrize("arch", [{}, {"tied": False, "num_layers": 3}])
def test_every_parameter_is_in_exactly_one_group(arch: dict[str, Any]) -> None:
    model = tiny.make_model(tiny.make_config(arch=arch))
    monitor = GradientMonitor(model)
    members = [name for names in monitor.groups.values() for name in names]
    assert sorted(members) == sorted(name for name, _ in model.named_parameters())
    # Not only on paper: a gradient in one parameter shows in its own group and in no other.
    for name, parameter in model.named_parameters():
        parameter.grad = torch.ones_like(parameter)
        got = {key: float(value) for key, value in monitor.measure().as_dict().items() if "layer_" in key}
        assert [key for key, value in got.items() if value] == [f"train/grad/layer_{group_of(name)}"]
        parameter.grad = None


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("embedding.child_aggregation.project.weight", "embedding"),
        ("recursion.low.blocks.11.attention.qkv.weight", "recursion.low.11"),
        ("recursion.high.blocks.0.ffn.down.weight", "recursion.high.0"),
        ("recursion.low.norm", "recursion.low"),
        ("recursion.gate", "recursion"),
        ("q_head.value_net.hidden.weight", "q_head.value_net"),
        ("q_head.halt_net.output.bias", "q_head.halt_net"),
        ("mtp.heads.0.weight", "mtp"),
        ("memory.query.weight", "memory"),
        ("answer.output.weight", "answer"),
        ("temperature", "temperature"),
    ],
)
def test_groups_by_name(name: str, group: str) -> None:
    assert group_of(name) == group


def test_names_are_registered() -> None:
    monitor = GradientMonitor(tiny.make_model(tiny.make_config(arch={"tied": False})))
    assert len(set(monitor.names)) == len(monitor.names)
    assert [name for name in monitor.names if describe(name) is None] == []


@pytest.mark.parametrize("missing", ["", "recursion."])
@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clipping_by_shared_norms_changes_no_bit(limit: float, missing: str) -> None:
    """Both parts as the optimisers have them, with and without parameters that got no gradient."""
    config = tiny.make_config(training={"optimizer": "muon"})
    model = real_gradients(training={"optimizer": "muon"})
    for name, parameter in model.named_parameters():
        if missing and name.startswith(missing):
            parameter.grad = None
    other = copy.deepcopy(model)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        theirs.grad = None if mine.grad is None else mine.grad.clone()
    optimizers = build_optimizers(model, config)  # type: ignore[arg-type]
    parts = (optimizers.model_params, optimizers.policy_params)
    totals = GradientMonitor(model, parts).measure().totals
    for part, total in zip(parts, totals, strict=True):
        nn.utils.clip_grads_with_norm_(part, limit, total)
    plain = build_optimizers(other, config)  # type: ignore[arg-type]
    expected = [nn.utils.clip_grad_norm_(part, limit) for part in (plain.model_params, plain.policy_params)]
    assert [float(total) for total in totals] == [float(total) for total in expected]
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None and theirs.grad is not None:
            assert torch.equal(mine.grad, theirs.grad)


def test_measuring_changes_nothing_and_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = real_gradients()
    before = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    monitor = GradientMonitor(model)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a value was read back")

    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
            patch.setattr(Tensor, name, refuse)
        stats = monitor.measure()
    assert not stats.values.requires_grad
    after = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_half_precision_gradients_are_measured_in_single() -> None:
    model = nn.Linear(64, 64, bias=False).half()
    model.weight.grad = torch.full((64, 64), 2000.0, dtype=torch.half)
    got = GradientMonitor(model).measure().as_dict()
    assert float(got["train/grad/max_norm"]) == 128_000, "past the range of float16"
    assert float(got["train/grad/mean"]) == 2000
    assert float(got["train/grad/num_inf"]) == 0


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    command = [sys.executable, "-m", "benchmarks.gradient_monitor", "--out", str(out)]
    command += ["--pairs", "3", "--warmup", "12", "--case", "quickstart, predictor at rest"]
    environment = {**os.environ, "TRM_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    case = json.loads(out.read_text())["cases"]["quickstart, predictor at rest"]
    assert 0 < case["tensors_with_gradient"] < case["tensors"], "only the policy learns"
    assert case["gross_pct"]["low"] <= case["gross_pct"]["median"] <= case["gross_pct"]["high"]
