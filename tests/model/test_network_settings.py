"""What is asked of the recursion's networks beside their sizes: precision, recomputation, compilation, frozen parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from forked import Forked
from torch import Tensor

from trm_core.errors import ConfigError
from trm_core.losses import StepLoss
from trm_core.optim.freeze import freeze
from trm_core.training import traced_memory
from trm_core.training.traced_memory import trace

ARCH = {"H_cycles": 3, "grad_cycles": 2, "L_cycles": 2, "num_layers": 2, "dropout": 0.1}


def gradients(training: dict[str, Any], **arch: Any) -> dict[str, Tensor]:
    """Of one step of a model that differs in nothing but its settings."""
    config = tiny.make_config(arch={**ARCH, **arch}, training=training)
    torch.manual_seed(0)
    model = tiny.make_model(config).train()
    carry = tiny.make_carry(model)
    torch.manual_seed(1)
    StepLoss(model, config)(carry, None, 0).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_computing_again_changes_no_bit_of_the_gradient() -> None:
    plain, again = gradients({}), gradients({"activation_checkpointing": True})
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name


def test_computing_again_takes_less_memory() -> None:
    def peak(recompute: bool) -> int:
        config = tiny.make_config(arch=ARCH, training={"activation_checkpointing": recompute})
        return trace(config, tiny.make_shape(), False, False, False, 256).peak

    assert peak(True) < 0.7 * peak(False)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"arch": {"grad_cycles": 1}},
        {"arch": {"enable_adaptive_hcycles": True}},
        {"memory": {"enabled": True, "capacity": 16, "num_heads": 2, "top_k": 2}},
        {"arch": {"enable_concepts": True, "num_concepts": 6}},
    ],
)
def test_cycles_that_leave_nothing_are_traced_once(
    sections: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes are those of all of them."""
    config = tiny.make_config(**{**sections, "arch": {**ARCH, "H_cycles": 5, **sections.get("arch", {})}})

    def traced() -> Any:
        traced_memory._trace.cache_clear()
        return trace(config, tiny.make_shape(), False, False, False, 64)

    few = traced()
    monkeypatch.setattr(traced_memory, "_shortened", lambda config: config.arch)
    assert traced() == few


def test_bfloat16_reaches_every_weight_with_nearly_the_same_gradient() -> None:
    plain, half = gradients({}, dropout=0.0), gradients({"precision": "bfloat16"}, dropout=0.0)
    assert plain.keys() == half.keys()
    assert any(not torch.equal(plain[name], half[name]) for name in plain)
    for name in (name for name in plain if name.startswith("recursion.")):
        alike = torch.cosine_similarity(plain[name].flatten(), half[name].flatten(), dim=0)
        assert alike > 0.98, name
        assert 0.8 < half[name].norm() / plain[name].norm() < 1.25, name
    assert all(gradient.dtype == torch.float32 for gradient in half.values())


def test_frozen_parts_stay_and_the_rest_learns(capsule_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {"run_dir": run, "total_steps": 8, "freeze": "[embedding.*, q_head.*]", "ema_decay": "null"}
    done = tiny.invoke("train", *tiny.as_overrides(data={"path": capsule_file}, training=settings))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {name for line in lines for name in line}
    assert "train/grad/layer_recursion.low.0" in logged
    assert not any(name.startswith(("train/grad/layer_embedding", "train/grad/layer_q_head")) for name in logged)
    first, last = (weights(folder) for folder in (begin(tmp_path, capsule_file), run))
    moved = {name.split(".")[0] for name in first if not torch.equal(first[name], last[name])}
    assert {"recursion", "answer"} <= moved
    assert not moved & {"embedding", "q_head"}


def begin(folder: Path, file: Path) -> Path:
    """A run of one step at a rate of nothing: the weights that training starts from."""
    run = folder / "begin"
    settings = {"run_dir": run, "total_steps": 1, "base_lr": 0, "lr_warmup_steps": 0, "ema_decay": "null"}
    done = tiny.invoke("train", *tiny.as_overrides(data={"path": file}, dqn={"lr": 1e-30}, training=settings))
    assert done.returncode == 0, done.stderr
    return run


def weights(run: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    (folder,) = sorted((run / "checkpoints").glob("step_*"))[-1:]
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("patterns", "says"),
    [
        (["embeding.*"], "embedding"),
        (["*", "!embeding.*"], "embedding"),
        (["*"], "name fewer"),
    ],
)
def test_patterns_that_match_nothing_or_everything(patterns: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        freeze(tiny.make_model(tiny.make_config()), patterns)
    assert "training.freeze" in error.value.message
    assert says in str(error.value.hint)


def test_without_a_compiler_the_config_says_so(capsule_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    done = tiny.invoke(
        "train", "--dry-run", *tiny.as_overrides(data={"path": capsule_file}, training={"compile": "true"})
    )
    assert done.returncode == 3
    assert "training.compile=true, but there is no compiler no-such-compiler" in done.stderr


@pytest.mark.parametrize(
    "arch", [{"pos_encodings": "rope"}, {"mixer": "mlp", "pos_encodings": "none"}], ids=["attention", "mixer"]
)
def test_a_network_is_compiled_as_a_whole(arch: dict[str, Any]) -> None:
    """In pieces, nothing would be fused across them, and a GPU would wait for Python between them."""
    network = tiny.make_model(tiny.make_config(arch={**ARCH, **arch})).recursion.low.eval()
    network.compile(backend="eager", fullgraph=True)  # raises where it would have to be cut
    x = torch.randn(2, tiny.K, network.blocks[0].ffn.gate_up.in_features)
    for learns in (False, True):
        with torch.set_grad_enabled(learns):
            compiled = network(x.clone().requires_grad_(learns), None)
            assert torch.allclose(compiled, network.forward(x.clone().requires_grad_(learns), None), atol=1e-5)


@pytest.mark.slow
def test_compiled_training_takes_the_same_path(capsule_file: Path, tmp_path: Path) -> None:
    """Rounding apart, for as long as no decision turns on it; and names of the weights do not change."""
    lines = {}
    for compiled in ("false", "true"):
        run = tmp_path / compiled
        settings = {"run_dir": run, "total_steps": 6, "compile": compiled}
        trained = Forked("train", *tiny.as_overrides(data={"path": capsule_file}, training=settings), cwd=tmp_path)
        _, err = trained.communicate()
        assert trained.returncode == 0, err
        lines[compiled] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert weights(tmp_path / "true").keys() == weights(tmp_path / "false").keys()
    for plain, fast in zip(lines["false"][:3], lines["true"][:3], strict=True):
        assert fast["train/lm_loss"] == pytest.approx(plain["train/lm_loss"], rel=1e-4)
    evaluated = Forked("eval", tmp_path / "true", "--policy", "never", cwd=tmp_path)
    _, err = evaluated.communicate()
    assert evaluated.returncode == 0, err
