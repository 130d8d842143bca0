"""Memory bank, codebook, worth of openings, counts and scales: updated once per step, the same on every rank, never by
an evaluation.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from ranks import on_ranks
from torch import Tensor

from trm_core.data.store import open_capsules
from trm_core.distributed.collectives import all_rows
from trm_core.dqn.actions import Action
from trm_core.dqn.curiosity import Curiosity
from trm_core.dqn.replay import ReplayBuffer
from trm_core.evaluation.report import EvaluationData, Evaluator
from trm_core.losses import StepLoss
from trm_core.model.trm import TinyRecursiveModel
from trm_core.training.episodes import Episodes
from trm_core.training.upkeep import keep_up

ROWS = 6
PARTS: dict[str, dict[str, Any]] = {
    "arch": {"enable_concepts": True, "num_concepts": 6, "max_steps": 3},
    "memory": {"enabled": True, "capacity": 12, "num_heads": 2, "reward_threshold": 0.5},
    "dqn": {"enable_curiosity": True, "random_open_fraction": 0.3, "expansion_cost_per_child": 0.001},
}


def make(first_row: int = 0) -> tuple[TinyRecursiveModel, Episodes, StepLoss]:
    config = tiny.make_config(**PARTS)
    model = tiny.make_model(config)
    torch.manual_seed(1)
    head = model.q_head
    curiosity = Curiosity(config.dqn, head.state_width - head.recurrent_width)
    replay = ReplayBuffer(config.dqn, head.state_width, head.num_actions, torch.device("cpu"))
    episodes = Episodes(model, config, torch.ones(tiny.K), replay, curiosity, first_row)
    return model, episodes, StepLoss(model, config, curiosity)


def shared(episodes: Episodes) -> dict[str, Any]:
    """All that must be the same on every rank."""
    assert episodes.curiosity is not None
    scales = {name: vars(scale) for name, scale in (("ext", episodes.scale), ("int", episodes.intrinsic_scale))}
    buffers = {**dict(episodes.model.named_buffers()), "counts": episodes.curiosity.counts}
    return {name: digest(value) for name, value in buffers.items() if "pending" not in name} | scales


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def train_rows(rank: int, world: int) -> dict[str, Any]:
    """Steps on this rank's own rows, without an optimiser: the weights stay equal, everything else moves."""
    model, episodes, loss = make(first_row=rank * ROWS)
    carry = episodes.initial_carry(tiny.make_batch(ROWS))
    for step in range(12):
        fresh = tiny.make_batch(int(carry.halted.sum()), seed=100 * rank + step)
        carry = episodes.begin(carry, fresh, step)
        with torch.no_grad():
            result = loss(carry, None, step)
        before = carry
        carry, decision = episodes.decide(before, result, step)
        keep_up(model, loss.config, before, result, decision, step)
    assert model.memory is not None
    return {**shared(episodes), "filled": int(model.memory.filled), "rows": all_rows(carry.q_state[:, 0]).tolist()}


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_keeps_the_same(tmp_path: Path, world: int) -> None:
    first, *others = on_ranks(world, tmp_path, train_rows)
    assert first["filled"] > 0
    assert len(set(first["rows"])) > ROWS, "the ranks saw different rows"
    for other in others:
        assert other == first
    alone = train_rows(0, 1)
    assert alone["concepts.codebook"] != first["concepts.codebook"], "one rank's rows alone give another codebook"


def test_rows_that_halt_with_enough_reward_are_remembered() -> None:
    model, episodes, loss = make()
    assert model.memory is not None
    carry = episodes.begin(episodes.initial_carry(tiny.make_batch(ROWS)), tiny.make_batch(ROWS), 0)
    with torch.no_grad():
        result = loss(carry, None, 0)
    _, decision = episodes.decide(carry, result, 0)
    halts = torch.tensor([True, True, True, False, False, True])
    right = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    decision = replace(
        decision,
        action=torch.where(halts, Action.HALT, Action.CONTINUE),
        ended=halts,
        terminal=torch.where(right > 0, 1.0, -0.5),
    )
    upkeep = keep_up(model, loss.config, carry, result, decision, 0)
    assert upkeep.memory is not None
    assert upkeep.memory.rows == 3
    states = result.output.z_H.mean(1)[halts & (right > 0)]
    stored = model.memory.values[: int(model.memory.filled)]
    assert {row.round(decimals=4).sum().item() for row in stored} <= {
        row.round(decimals=4).sum().item() for row in states
    }
    model.eval()
    again = keep_up(model, loss.config, carry, result, decision, 1)
    assert again.memory is None, "a finished predictor remembers nothing new"


def test_the_worth_of_openings_is_their_mean_fall_of_the_loss() -> None:
    model, episodes, loss = make()
    assert model.opening_worth is not None
    carry = episodes.begin(episodes.initial_carry(tiny.make_batch(ROWS)), tiny.make_batch(ROWS), 0)
    opened = torch.zeros(ROWS, tiny.K, dtype=torch.bool)
    opened[0, 1] = opened[1, 1] = opened[1, 2] = True
    carry = replace(carry, pending=replace(carry.pending, opened=opened), loss=torch.full((ROWS,), 2.0))
    with torch.no_grad():
        result = loss(carry, None, 0)
    _, decision = episodes.decide(carry, result, 0)
    keep_up(model, loss.config, carry, result, decision, 0)
    falls = (2.0 - result.quality.loss).tolist()
    assert model.opening_worth.total.tolist() == pytest.approx([0.0, falls[0] + falls[1] / 2, falls[1] / 2, 0.0])
    assert model.opening_worth.count.tolist() == [0.0, 1.5, 0.5, 0.0]


def test_evaluation_changes_nothing(capsule_file: Path) -> None:
    config = tiny.make_config(**PARTS)
    model = tiny.make_model(config)
    assert model.memory is not None
    model.train()
    model.memory.write(torch.randn(8, 16), torch.ones(8), 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = EvaluationData(open_capsules(capsule_file), "validation")
    Evaluator(model, config, data).table(["learned", "threshold", "never", "all", "random"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.memory.pending.any()
