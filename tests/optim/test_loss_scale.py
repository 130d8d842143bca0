"""The factor on the loss of float16: what it saves, what a step does that leaves float16's range, and its way into a
checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from trm_core.errors import CheckpointError
from trm_core.losses import StepLoss, StepResult
from trm_core.model.token_embedding import PuzzleEmbedding
from trm_core.optim.loss_scale import LossScale
from trm_core.optim.sparse_sign_sgd import SparseSignSGD
from trm_core.prepare import RunHooks, prepare
from trm_core.training.faults import NotFinite
from trm_core.training.trainer import Trainer


def make_trainer(data: Path, **training: Any) -> Trainer:
    settings = {"total_steps": 40, "global_batch_size": 8, "ema_decay": 0.9, "precision": "float16", **training}
    dqn = {"buffer_min_size": 8, "batch_size": 8, "buffer_capacity": 64}
    prepared = prepare(tiny.make_config(data={"path": str(data)}, training=settings, dqn=dqn), RunHooks())
    return Trainer(prepared.config, prepared.features, prepared.files, prepared.device, None)


def learned(trainer: Trainer) -> dict[str, Tensor]:
    """All that a gradient moves. What a forward counted is sound, whatever its gradient."""
    saved = trainer.state.to_checkpoint({})
    both = {**saved.model, **saved.training}
    return {name: value.clone() for name, value in both.items() if "opening_worth" not in name}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_grows_where_nothing_overflows_and_falls_to_one() -> None:
    scale = LossScale(value=4.0)
    for _ in range(1999):
        scale.hold()
    assert scale.value == 4.0
    scale.hold()
    assert (scale.value, scale.held) == (8.0, 0)
    scale.hold()
    assert [scale.lower() for _ in range(3)] == [True, True, True]
    assert (scale.value, scale.held) == (1.0, 0)
    assert not scale.lower()
    assert scale.value == 1.0
    most = LossScale(value=2.0**24, held=1999)
    most.hold()
    assert most.value == 2.0**24


def test_small_gradients_are_no_zeros_and_nearly_those_of_float32() -> None:
    def gradients(precision: str, factor: float) -> dict[str, Tensor]:
        config = tiny.make_config(training={"precision": precision}, arch={"dropout": 0.0})
        torch.manual_seed(0)
        model = tiny.make_model(config).train()
        # As small as they are late in training, or in the mean over many rows.
        (StepLoss(model, config)(tiny.make_carry(model), None, 0).loss * 1e-6 * factor).backward()
        named = model.named_parameters()
        return {name: p.grad / factor for name, p in named if p.grad is not None and name.startswith("recursion.")}

    full, bare, scaled = gradients("float32", 1.0), gradients("float16", 1.0), gradients("float16", 2.0**16)
    assert full.keys() == scaled.keys() == bare.keys()
    for name, gradient in full.items():
        assert torch.cosine_similarity(gradient.flatten(), scaled[name].flatten(), dim=0) > 0.99, name
        assert 0.95 < scaled[name].norm() / gradient.norm() < 1.05, name
    zeros = {way: sum(int((g == 0).sum()) for g in one.values()) for way, one in (("bare", bare), ("scaled", scaled))}
    assert zeros["bare"] > 1000
    assert zeros["scaled"] < 10


def test_a_step_that_overflows_moves_nothing_but_goes_on(capsule_file: Path) -> None:
    trainer = make_trainer(capsule_file)
    for _ in range(3):
        trainer.taker.take(trainer.standing())
    state = trainer.state
    assert state.loss_scale is not None
    state.loss_scale.value = 2.0**40
    before, thought = learned(trainer), state.carry.z_H.clone()
    trainer.taker.take(trainer.standing())
    assert same(before, learned(trainer))
    assert state.loss_scale.value == 2.0**39
    assert (state.step, state.faults.skipped) == (4, 0)
    assert not torch.equal(state.carry.z_H, thought), "rows think on: their answers are sound"
    assert all(p.grad is None for p in state.model.parameters())
    for _ in range(30):
        trainer.taker.take(trainer.standing())
    assert not same(before, learned(trainer))
    assert all(bool(value.isfinite().all()) for value in learned(trainer).values() if value.is_floating_point())


def test_where_nothing_has_a_gradient_yet(capsule_file: Path, tmp_path: Path) -> None:
    """The predictor is finished, and there is not enough to replay."""
    arch, dqn = (
        {"enable_capsule_expansion": "false", "q_head_num_actions": 2},
        {"enabled": "true", "buffer_min_size": 150},
    )
    training = {"run_dir": tmp_path / "run", "total_steps": 4, "predictor_steps": 2, "precision": "float16"}
    done = tiny.invoke("train", *tiny.as_overrides(data={"path": capsule_file}, arch=arch, dqn=dqn, training=training))
    assert done.returncode == 0, done.stderr


def test_what_is_no_overflow_is_a_fault(capsule_file: Path) -> None:
    trainer = make_trainer(capsule_file)
    forward, state = trainer.taker.loss.forward, trainer.state

    def faulty(*arguments: Any) -> StepResult:
        result = forward(*arguments)
        result.loss.register_hook(lambda gradient: gradient * torch.nan)
        return result

    trainer.taker.loss.forward = faulty  # type: ignore[method-assign]
    before = learned(trainer)
    for _ in range(16):  # 65536 to 1
        trainer.taker.take(trainer.standing())
    with pytest.raises(NotFinite, match="gradient"):
        trainer.taker.take(trainer.standing())
    assert state.loss_scale == LossScale(value=1.0)
    assert same(before, learned(trainer))


def test_a_puzzle_embedding_alone_may_overflow() -> None:
    embedding = PuzzleEmbedding(4, 8)
    optimizer = SparseSignSGD(embedding, lr=0.1, weight_decay=0.0)
    rows = torch.ones(2, 8, requires_grad=True)
    embedding.used.append((torch.tensor([1, 2]), rows))
    assert optimizer.all_finite(), "no gradient yet"
    rows.grad = torch.ones(2, 8)
    assert optimizer.all_finite()
    rows.grad[1, 3] = torch.inf
    assert not optimizer.all_finite()


def test_a_run_logs_it_and_goes_on_from_it(capsule_file: Path, tmp_path: Path) -> None:
    """Stopped and resumed as if it had not been, with a factor that has fallen."""

    def train(run: Path, *extra: str, precision: str = "float16") -> None:
        settings = {"run_dir": run, "total_steps": 12, "precision": precision, "log_interval": 1}
        done = tiny.invoke("train", *tiny.as_overrides(data={"path": capsule_file}, training=settings), *extra)
        assert done.returncode in (0, 75), done.stderr

    def lines(run: Path) -> list[dict[str, float]]:
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    train(tmp_path / "whole")
    train(tmp_path / "parts", "training.stop_at_step=6")
    (saved,) = (tmp_path / "parts/checkpoints").glob("step_*6")
    assert json.loads((saved / "state.json").read_text())["loss_scale"] == {"value": 65536.0, "held": 6}
    train(tmp_path / "parts", "training.stop_at_step=null", "--resume", "auto")
    whole, parts = lines(tmp_path / "whole"), lines(tmp_path / "parts")
    losses = [line["train/lm_loss"] for line in whole if "train/lm_loss" in line]
    assert losses == [line["train/lm_loss"] for line in parts if "train/lm_loss" in line]
    assert all(line["train/loss_scale"] == 65536 for line in whole if "train/lm_loss" in line)
    assert all(line["train/loss_scale_overflow"] == 0 for line in whole if "train/lm_loss" in line)
    train(tmp_path / "full", precision="float32")
    full = lines(tmp_path / "full")
    assert not any("train/loss_scale" in line for line in full)
    assert whole[0]["train/grad_norm"] == pytest.approx(full[0]["train/grad_norm"], rel=0.02)
    assert whole[0]["train/policy_grad_norm"] == pytest.approx(full[0]["train/policy_grad_norm"], rel=0.02)


def test_a_forged_factor_is_refused(capsule_file: Path) -> None:
    trainer = make_trainer(capsule_file)
    saved = trainer.state.to_checkpoint({})
    for wrong in ({"value": "many", "held": 0}, {"value": 2.0}, {"value": 0.0, "held": 0}, {"value": 3e99, "held": 0}):
        with pytest.raises(CheckpointError, match="does not fit this configuration"):
            trainer.state.restore(replace(saved, state={**saved.state, "loss_scale": wrong}))
