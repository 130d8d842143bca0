"""What changes when the predictor is finished (`training.predictor_steps`) and the policy goes on learning."""

from __future__ import annotations

from pathlib import Path

import tiny

from trm_core.prepare import RunHooks, prepare
from trm_core.training.trainer import Trainer


def test_a_finished_predictor_has_no_dropout(capsule_file: Path) -> None:
    """Nor has any part of it; where the phase begins anew, as after a rollback, all of them have it again."""
    config = tiny.make_config(
        data={"path": str(capsule_file)}, arch={"dropout": 0.1}, training={"predictor_steps": 3, "ema_decay": 0.9}
    )
    prepared = prepare(config, RunHooks())
    trainer = Trainer(prepared.config, prepared.features, prepared.files, prepared.device)
    modes: list[set[bool]] = []
    model = trainer.state.model
    model.recursion.register_forward_pre_hook(lambda *_: modes.append({part.training for part in model.modules()}))
    for _ in range(5):
        trainer.taker.take(trainer.standing())
    longer = prepared.config.training.model_copy(update={"predictor_steps": 6})
    trainer.taker.config = prepared.config.model_copy(update={"training": longer})
    trainer.taker.take(trainer.standing())
    assert modes == [{True}] * 3 + [{False}] * 2 + [{True}]
