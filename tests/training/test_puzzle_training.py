"""Training on puzzles as one system: several processes, exploration of halting, Q-learning, frozen embeddings."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from forked import Forked
from ranks import on_ranks
from safetensors.torch import load_file, save_file
from tiny_puzzles import ARCH, SIZE, write_puzzles
from torch import Tensor

from trm_core.distributed.collectives import all_rows
from trm_core.dqn.actions import Action
from trm_core.errors import ConfigError
from trm_core.model.carry import Carry
from trm_core.prepare import RunHooks, prepare
from trm_core.training.faults import NotFinite
from trm_core.training.loggers import AllLoggers
from trm_core.training.trainer import Trainer

BATCH = 8
ALL_PARAMETERS = ["recursion.*", "answer.*", "embedding.tokens.*", "q_head.*"]


def make_trainer(folder: str, /, **sections: dict[str, Any]) -> Trainer:
    training = {"global_batch_size": BATCH, "puzzle_emb_lr": 0.02, **sections.pop("training", {})}
    arch = {**ARCH, **sections.pop("arch", {})}
    data = {"path": folder, **sections.pop("data", {})}
    prepared = prepare(tiny.make_config(arch=arch, data=data, training=training, **sections), RunHooks())
    return Trainer(prepared.config, prepared.features, prepared.files, prepared.device)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("puzzles") / "p"
    return str(write_puzzles(folder, groups=10, copies=2, examples=3, identifiers=6))


def embeddings(trainer: Trainer) -> Tensor:
    return trainer.state.model.embedding.puzzles.weights


def train_in_float64(rank: int, world: int, data: str, draw: str) -> dict[str, Any]:
    """What a few steps leave, and which rows and gradients of puzzle embeddings they had."""
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    torch.set_default_dtype(torch.float64)
    trainer = make_trainer(
        data,
        data={"draw": draw},
        training={"accumulation_steps": 3 - world, "total_steps": 8, "lr_warmup_steps": 0, "monitor_gradients": False},
        dqn={"enabled": False, "halt_exploration": 0.5},
    )
    state = trainer.state
    state.model.double()
    generator = torch.Generator().manual_seed(1)
    embeddings(trainer).copy_(torch.randn(6, 16, generator=generator))
    with torch.no_grad():  # some rows halt at once
        state.model.q_head.halt_net.bias.fill_(0.0)
        state.model.q_head.halt_net.weight.copy_(torch.randn(1, 16, generator=generator))
    losses, rows, sums = [], [], []
    before = state.model.embedding.puzzles.used

    def keep() -> None:
        identifiers = all_rows(torch.cat([some for some, _ in before]))
        gradients = all_rows(torch.cat([read.grad for _, read in before]))
        # Each process's loss is divided for the mean that DDP takes.
        sums.append(torch.zeros(6, 16).index_add_(0, identifiers, gradients / world))

    step = state.optimizers.puzzles.step
    state.optimizers.puzzles.step = lambda: (keep(), step())  # type: ignore[method-assign,assignment]
    for _ in range(8):
        result, _ = trainer.taker.take(trainer.standing())
        losses.append(float(result.loss.detach()))
        rows.append(all_rows(state.carry.capsules.sketches).tolist())
    tensors = {name: value.detach() for name, value in state.model.state_dict().items()}
    return {"losses": losses, "rows": rows, "sums": torch.stack(sums), "model": tensors}


@pytest.mark.slow
@pytest.mark.parametrize("draw", ["batch", "halted"])
def test_two_processes_train_what_one_does(data: str, tmp_path: Path, draw: str) -> None:
    """The same rows, losses, weights and puzzle embeddings, where one has the batch in parts."""
    (alone,) = on_ranks(1, tmp_path / "alone", train_in_float64, data, draw)
    found = on_ranks(2, tmp_path / "together", train_in_float64, data, draw)
    assert len({str(rows) for rows in alone["rows"]}) > 4, "rows halt, and others come"
    mean = [sum(each["losses"][step] for each in found) / 2 for step in range(8)]
    for each in found:
        assert each["rows"] == alone["rows"]
        torch.testing.assert_close(each["sums"], alone["sums"], rtol=1e-6, atol=1e-9)
        for name, value in alone["model"].items():
            torch.testing.assert_close(each["model"][name], value, rtol=1e-6, atol=1e-9, msg=name)
    assert mean == pytest.approx(alone["losses"], rel=1e-9)


def step_that_wants_to_halt(trainer: Trainer) -> Carry:
    """The carry after a step in which every halt logit is high."""
    head = trainer.state.model.q_head.halt_net
    with torch.no_grad():
        head.bias.fill_(9.0)
        head.weight.zero_()
    trainer.taker.take(trainer.standing())
    return trainer.state.carry


def test_exploration_holds_rows_back(data: str) -> None:
    """A head that wants to halt at once is let to, but for the share that must think on: 2 to T steps."""
    trainer = make_trainer(data, arch={"max_steps": 5}, dqn={"enabled": False, "halt_exploration": 0.6})
    halted_at, asked = [], []
    for _ in range(60):
        carry = step_that_wants_to_halt(trainer)
        assert not bool((carry.halted & (carry.steps < carry.min_steps)).any())
        assert bool((carry.halted | (carry.steps < carry.min_steps)).all()), "nothing else holds a row"
        halted_at += carry.steps[carry.halted].tolist()
        asked += carry.min_steps[carry.halted].tolist()
    assert halted_at == asked
    held = [steps for steps in halted_at if steps > 1]
    assert {2, 3, 4, 5} == set(held)
    assert 0.35 < len(held) / len(halted_at) < 0.8


def test_exploration_may_be_drawn_anew_at_each_step(data: str) -> None:
    """Where every row wants to halt, it is held at step t with the share of the draws in 2..T that are above t."""
    dqn = {"enabled": False, "halt_exploration": 0.6, "halt_exploration_draw": "step"}
    trainer = make_trainer(data, arch={"max_steps": 5}, dqn=dqn)
    reached, halted = torch.zeros(6), torch.zeros(6)
    for _ in range(120):
        carry = step_that_wants_to_halt(trainer)
        assert torch.equal(carry.halted, carry.steps >= carry.min_steps)
        reached += torch.bincount(carry.steps, minlength=6)
        halted += torch.bincount(carry.steps[carry.halted], minlength=6)
    share = halted[1:] / reached[1:]
    assert share[4] == 1.0
    few = 0.6 * (1 - 0.6) / reached[1:5]  # about the variance of a share
    assert bool(((share[:4] - torch.tensor([0.4, 0.55, 0.7, 0.85])).abs() < 4 * few.sqrt()).all()), share


def test_a_policy_learns_on_puzzles_and_never_opens(data: str, tmp_path: Path) -> None:
    """Three outputs asked for are two: there is nothing to EXPAND."""
    run = tmp_path / "run"
    done = tiny.invoke(
        "train",
        *tiny.as_overrides(
            arch={**ARCH, "q_head_num_actions": 3},
            data={"path": data},
            training={"run_dir": run, "total_steps": 30},
            dqn={"enabled": "true", "buffer_min_size": 16, "epsilon_end": 0.2},
        ),
    )
    assert done.returncode == 0, done.stderr
    lines = tiny.metrics_without_clock(run)
    trained = [line for line in lines if "train/loss" in line]
    assert all(line["train/action_expand_pct"] == 0 and line["train/num_expansions"] == 0 for line in trained)
    assert any(line.get("train/dqn_td_error_mean", 0) > 0 for line in trained)
    assert {line["train/action_1_halt"] for line in trained} != {0.0}
    record = json.loads((run / "evaluation.json").read_text())
    assert [score["policy"] for score in record["scores"]] == ["learned", "threshold", "act", "never"]
    assert all(score["opened"] == score["spent"] == 0 for score in record["scores"])


def test_expand_is_never_valid(data: str) -> None:
    trainer = make_trainer(data, dqn={"enabled": True})
    assert trainer.state.model.q_head.num_actions == 2
    for _ in range(6):
        _, decision = trainer.taker.take(trainer.standing())
        assert not bool((decision.action == Action.EXPAND).any())
        assert decision.opened.shape == (BATCH, SIZE)
        assert not bool(decision.opened.any())


@pytest.mark.parametrize(
    ("patterns", "moves"),
    [
        ([], True),
        (["embedding.tokens.*"], True),
        (ALL_PARAMETERS, True),
        (["*", "!embedding.puzzles.*"], True),
        (["*", "!recursion.*"], False),
        (["!embedding.*", "embedding.*"], False),
        (["embedding.*"], False),
        (["embedding.puzzles.weights"], False),
    ],
)
def test_puzzle_embeddings_freeze_like_parameters(data: str, patterns: list[str], moves: bool) -> None:
    trainer = make_trainer(data, training={"freeze": patterns}, dqn={"enabled": False})
    before = embeddings(trainer).clone()
    for _ in range(3):
        trainer.taker.take(trainer.standing())
    assert bool((embeddings(trainer) != before).any()) == moves
    assert trainer.state.model.embedding.puzzles.used == []


def train_embeddings_alone(rank: int, world: int, data: str) -> Tensor:
    trainer = make_trainer(data, training={"freeze": ALL_PARAMETERS}, dqn={"enabled": False})
    for _ in range(3):
        trainer.taker.take(trainer.standing())
    return embeddings(trainer)


def test_two_processes_learn_puzzle_embeddings_alone(data: str, tmp_path: Path) -> None:
    """There is nothing then whose gradient DDP could share."""
    for found in on_ranks(2, tmp_path, train_embeddings_alone, data):
        torch.testing.assert_close(found, train_embeddings_alone(0, 1, data))


def test_a_step_that_is_not_finite_leaves_puzzle_embeddings_alone(data: str) -> None:
    trainer = make_trainer(data, dqn={"enabled": False})
    trainer.taker.take(trainer.standing())
    before = embeddings(trainer).clone()
    forward = trainer.taker.loss.forward

    def spoiled(*arguments: Any) -> Any:
        result = forward(*arguments)
        object.__setattr__(result, "loss", result.loss * torch.nan)
        return result

    trainer.taker.loss.forward = spoiled  # type: ignore[method-assign]
    said: list[str] = []
    with pytest.raises(NotFinite) as fault:
        trainer.taker.take(trainer.standing())
    trainer.skip(fault.value, AllLoggers([]), said.append)
    assert "skipped" in said[0]
    assert torch.equal(embeddings(trainer), before)
    trainer.taker.loss.forward = forward  # type: ignore[method-assign]
    trainer.taker.take(trainer.standing())
    assert bool(embeddings(trainer).isfinite().all())


def test_a_run_whose_data_are_cut_ends_with_the_files_name(tmp_path: Path) -> None:
    """By an error with its exit code, and not by the signal of reading a mapped file beyond its end."""
    folder, run = write_puzzles(tmp_path / "puzzles"), tmp_path / "run"
    training = {"run_dir": run, "total_steps": 1_000_000, "log_interval": 1, "eval_interval": 1_000_000}
    overrides = tiny.as_overrides(data={"path": folder}, arch=ARCH, training=training)
    process = Forked("train", *overrides, cwd=tmp_path)
    try:
        tiny.wait_for_step(process, run, 2)
        os.truncate(folder / "train" / "all__labels.npy", 0)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 4, said
    assert "train/all__labels.npy: was truncated while it was in use" in said
    assert "Traceback" not in said


def test_unknown_puzzles_are_refused_where_they_have_an_embedding(data: str, tmp_path: Path) -> None:
    more = write_puzzles(tmp_path / "more", identifiers=7)
    with pytest.raises(ConfigError, match="has 7 puzzle identifiers, but the training puzzles have 6"):
        make_trainer(data, data={"eval_path": str(more)})
    make_trainer(data, data={"eval_path": str(more)}, arch={"puzzle_emb_ndim": 0})


@pytest.mark.parametrize(
    ("name", "value"), [("capsules.sketches", 99), ("capsules.puzzles", 6), ("labels", 5), ("capsules.sketches", -1)]
)
def test_a_checkpoint_of_unknown_tokens_is_refused(data: str, tmp_path: Path, name: str, value: int) -> None:
    run = tmp_path / "run"
    overrides = tiny.as_overrides(
        arch=ARCH, data={"path": data}, training={"run_dir": run, "total_steps": 4}, dqn={"enabled": "false"}
    )
    stopped = tiny.invoke("train", *overrides, "training.stop_at_step=2")
    assert stopped.returncode == 75, stopped.stderr
    (folder,) = (run / "checkpoints").glob("step_*")
    tensors = load_file(folder / "rank0.safetensors")
    tensors[f"carry.{name}"].flatten()[0] = value
    save_file(tensors, folder / "rank0.safetensors")
    tiny.vouch_for(folder)
    resumed = tiny.invoke("train", *overrides, "--resume", "auto")
    assert resumed.returncode == 4, resumed.stderr
    assert "carry: " in resumed.stderr
