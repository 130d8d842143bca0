"""Numbers that are not finite: skipped whole, rolled back, given up; in real runs with planted faults."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from trm_core.errors import DivergedError
from trm_core.losses import StepResult
from trm_core.prepare import RunHooks, prepare
from trm_core.training.agreement import Standing
from trm_core.training.faults import Faults, NotFinite, all_finite
from trm_core.training.loggers import JsonLines
from trm_core.training.stopping import StopFlag
from trm_core.training.trainer import Hooks, Trainer

ROWS = 8


def make_trainer(data: Path, run: Path | None = None, **training: Any) -> Trainer:
    """With everything that a step may change: averages, replay, target network, memory bank, codebook."""
    settings = {"total_steps": 12, "global_batch_size": ROWS, "ema_decay": 0.9, "log_interval": 1, **training}
    config = tiny.make_config(
        data={"path": str(data)},
        arch={"enable_concepts": True, "num_concepts": 4},
        memory={"enabled": True, "capacity": 16, "top_k": 2, "num_heads": 2, "reward_threshold": -1.0},
        training=settings,
        dqn={"buffer_min_size": 8, "batch_size": 8, "buffer_capacity": 64},
    )
    prepared = prepare(config, RunHooks())
    return Trainer(prepared.config, prepared.features, prepared.files, prepared.device, run)


def learned(trainer: Trainer) -> str:
    """A hash of all that a step may change, but for the carry, the data position and the counters."""
    saved = trainer.state.to_checkpoint({})
    tensors = {**saved.model, **{k: v for k, v in saved.training.items() if not k.startswith("carry.")}}
    state = hashlib.sha256()
    for name in sorted(tensors):
        state.update(name.encode() + tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def plant(trainer: Trainer, at: Callable[[int], bool], rows: Tensor | None = None) -> None:
    """Make the loss NaN in the calls where `at` holds (counted from 0), by the logits of `rows`."""
    forward, calls = trainer.taker.loss.forward, iter(range(10**9))

    def faulty(*arguments: Any) -> StepResult:
        result = forward(*arguments)
        if at(next(calls)):
            if rows is not None:
                result.output.logits.detach()[rows] = torch.nan
            object.__setattr__(result, "loss", result.loss * torch.nan)
        return result

    trainer.taker.loss.forward = faulty  # type: ignore[method-assign]


def test_a_skipped_step_changes_nothing_but_the_rows_to_blame(capsule_file: Path, tmp_path: Path) -> None:
    trainer = make_trainer(capsule_file)
    for _ in range(6):
        trainer.taker.take(trainer.standing())
    before, carry = learned(trainer), trainer.state.carry
    assert not carry.halted.all(), "the example has rows that go on"
    bad = (~carry.halted).nonzero().squeeze(1)[:1]
    plant(trainer, lambda call: call == 0, bad)
    with pytest.raises(NotFinite) as fault:
        trainer.taker.take(trainer.standing())
    trainer.skip(fault.value, JsonLines(tmp_path / "metrics.jsonl", print), print)
    assert learned(trainer) == before
    assert trainer.state.step == 7
    expected = carry.halted.clone()
    expected[bad] = True
    assert torch.equal(trainer.state.carry.halted, expected)
    assert torch.equal(trainer.state.carry.steps, carry.steps)
    assert torch.equal(trainer.state.carry.z_H, carry.z_H)
    assert all(p.grad is None for p in trainer.state.model.parameters())
    trainer.taker.take(trainer.standing())
    assert learned(trainer) != before
    assert bool(trainer.state.carry.z_H.isfinite().all())


def test_a_gradient_that_is_not_finite_is_skipped(capsule_file: Path) -> None:
    trainer = make_trainer(capsule_file)
    for _ in range(6):
        trainer.taker.take(trainer.standing())
    before = learned(trainer)
    weight = trainer.state.model.answer.output.weight
    handle = weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NotFinite, match="gradient"):
        trainer.taker.take(trainer.standing())
    handle.remove()
    trainer.state.optimizers.zero_grad()
    assert trainer.state.model.memory is not None
    trainer.state.model.memory.forget_pending()
    assert learned(trainer) == before


def run(trainer: Trainer, folder: Path) -> tuple[str, list[str], list[dict[str, Any]]]:
    said: list[str] = []
    logger = JsonLines(folder / "metrics.jsonl", said.append)
    try:
        outcome = trainer.run(logger, StopFlag(), Hooks(log=said.append))
    finally:
        logger.close()
    return outcome, said, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_faults_in_a_row_roll_back_and_halve_the_rate(capsule_file: Path, tmp_path: Path) -> None:
    plain = make_trainer(capsule_file, tmp_path / "plain", checkpoint_interval=3)
    (tmp_path / "plain").mkdir()
    _, _, lines = run(plain, tmp_path / "plain")
    rates = {line["step"]: line["train/lr"] for line in lines}

    folder = tmp_path / "faulty"
    folder.mkdir()
    trainer = make_trainer(capsule_file, folder, checkpoint_interval=3, max_skipped_steps=2)
    plant(trainer, lambda call: 4 <= call < 7)
    outcome, said, lines = run(trainer, folder)
    assert outcome == "done"
    assert [line["step"] for line in lines] == list(range(1, 13)), "what was logged after the checkpoint is void"
    assert trainer.state.faults.rollbacks == 1
    assert trainer.state.faults.skipped == 3
    assert any("back to step_00000003" in text for text in said)
    for line in lines:
        factor = 0.5 if line["step"] > 3 else 1.0
        assert line["train/lr"] == pytest.approx(factor * rates[line["step"]])
    assert lines[-1]["train/rate_factor"] == 0.5
    again = make_trainer(capsule_file, folder, checkpoint_interval=3)
    again.resume()
    assert again.state.faults == trainer.state.faults


def test_the_data_of_the_fault_is_left_out(capsule_file: Path, tmp_path: Path) -> None:
    trainer = make_trainer(capsule_file, tmp_path, checkpoint_interval=3, max_skipped_steps=0)
    positions: list[Any] = []
    take = trainer.state.stream.take

    def watched(*rows: int) -> Any:
        positions.append(trainer.state.stream.state_dict())
        return take(*rows)

    trainer.state.stream.take = watched  # type: ignore[method-assign]
    plant(trainer, lambda call: call == 5)
    run(trainer, tmp_path)
    assert trainer.state.faults.rollbacks == 1
    texts = [json.dumps(position, sort_keys=True) for position in positions]
    assert texts[6] not in texts[:6], "no sample before the fault is taken again"


def break_weights(trainer: Trainer, step: int) -> None:
    """Once, as a bit that flips in memory does."""
    take, flips = trainer.taker.take, iter([True])

    def taking(standing: Standing) -> Any:
        if trainer.state.step == step and next(flips, False):
            with torch.no_grad():
                next(iter(trainer.state.model.answer.parameters())).fill_(torch.nan)
        return take(standing)

    trainer.taker.take = taking  # type: ignore[method-assign]


def stop_at(trainer: Trainer, step: int, flag: StopFlag) -> None:
    take = trainer.taker.take

    def taking(standing: Standing) -> Any:
        if trainer.state.step == step - 1:
            flag.received = signal.SIGTERM
        return take(standing)

    trainer.taker.take = taking  # type: ignore[method-assign]


def test_what_is_saved_among_faults_is_not_gone_back_to(capsule_file: Path, tmp_path: Path) -> None:
    settings = {"checkpoint_interval": 3, "total_steps": 20}
    trainer, flag = make_trainer(capsule_file, tmp_path, **settings), StopFlag()
    break_weights(trainer, 7)
    stop_at(trainer, 9, flag)
    assert trainer.run(JsonLines(tmp_path / "metrics.jsonl", print), flag, Hooks()) == "stopped"
    again = make_trainer(capsule_file, tmp_path, **settings)
    assert again.resume() == ["resuming from step_00000009 (step 9)"]
    outcome, said, _ = run(again, tmp_path)
    assert outcome == "done"
    assert again.state.faults == Faults(skipped=4, rollbacks=1, rate=0.5)
    assert any("back to step_00000006" in text for text in said), said


def test_broken_weights_are_not_what_a_run_ends_with(capsule_file: Path, tmp_path: Path) -> None:
    """Where there are no later steps that would tell."""
    trainer = make_trainer(capsule_file, tmp_path, checkpoint_interval=3, total_steps=9)
    break_weights(trainer, 7)
    outcome, said, _ = run(trainer, tmp_path)
    assert outcome == "done"
    assert any("back to step_00000006" in text for text in said), said
    assert all_finite(trainer.state.shared({}))
    alone = make_trainer(capsule_file, tmp_path / "alone", total_steps=9)
    (tmp_path / "alone").mkdir()
    break_weights(alone, 7)
    with pytest.raises(DivergedError, match="no checkpoint to go back to"):
        run(alone, tmp_path / "alone")


def test_a_last_step_that_is_skipped_is_no_reason_to_go_back(capsule_file: Path, tmp_path: Path) -> None:
    trainer = make_trainer(capsule_file, tmp_path, checkpoint_interval=3)
    plant(trainer, lambda call: call == 11)
    outcome, _, _ = run(trainer, tmp_path)
    assert outcome == "done"
    assert trainer.state.faults == Faults(skipped=1, in_a_row=1)


def test_a_stop_right_after_going_back_forgets_nothing(capsule_file: Path, tmp_path: Path) -> None:
    trainer, flag = make_trainer(capsule_file, tmp_path, checkpoint_interval=3), StopFlag()
    plant(trainer, lambda call: 7 <= call < 11)

    def log(message: str) -> None:
        if "back to step_00000006" in message:
            flag.received = signal.SIGTERM

    assert trainer.run(JsonLines(tmp_path / "metrics.jsonl", print), flag, Hooks(log=log)) == "stopped"
    assert trainer.state.step == 6
    again = make_trainer(capsule_file, tmp_path)
    again.resume()
    assert again.state.faults == trainer.state.faults == Faults(skipped=4, rollbacks=1, rate=0.5)
    assert again.state.stream.state_dict() == trainer.state.stream.state_dict()


@pytest.mark.parametrize("rollbacks", [0, 2])
def test_a_fault_that_stays_is_given_up_with_what_was_tried(capsule_file: Path, tmp_path: Path, rollbacks: int) -> None:
    trainer = make_trainer(capsule_file, tmp_path, checkpoint_interval=3, max_rollbacks=rollbacks)
    plant(trainer, lambda call: call >= 4)
    with pytest.raises(DivergedError, match=f"{rollbacks} rollbacks did not help, and training.max_rollbacks"):
        run(trainer, tmp_path)
    assert trainer.state.faults.rollbacks == rollbacks


def test_every_rate_is_named_that_has_to_be_lower(capsule_file: Path) -> None:
    for optimizer, named in (("adamatan2", False), ("muon", True)):
        training = make_trainer(capsule_file, optimizer=optimizer, base_lr=0.1, muon_lr=0.4).config.training
        hint = str(Faults(rate=0.5).diverged(7, "the loss is not finite", training, "so").hint)
        assert "training.base_lr=0.025" in hint
        assert ("training.muon_lr=0.1" in hint) == named


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(capsule_file: Path, tmp_path: Path) -> None:
    trainer = make_trainer(capsule_file, tmp_path)
    plant(trainer, lambda call: call >= 2)
    with pytest.raises(DivergedError, match="no checkpoint to go back to"):
        run(trainer, tmp_path)
