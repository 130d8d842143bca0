"""Several real processes train what one would: the same gradient, the same data, the same state everywhere."""

from __future__ import annotations

import errno
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from ranks import on_ranks
from test_every_combination import FEATURES, ROWS, overrides_of
from torch import Tensor

from trm_core.config import load_config
from trm_core.data.fields import IGNORE_LABEL
from trm_core.dqn.learner import no_transitions
from trm_core.errors import DivergedError
from trm_core.model.rows import take_rows
from trm_core.prepare import RunHooks, prepare
from trm_core.training import saving
from trm_core.training.agreement import require_alike
from trm_core.training.checkpoint_verify import checkpoint_facts
from trm_core.training.loggers import AllLoggers
from trm_core.training.stopping import StopFlag
from trm_core.training.trainer import Hooks, Trainer

BATCH = 8
ALL: dict[str, dict[str, Any]] = {
    "arch": {"enable_concepts": True, "num_concepts": 5, "enable_mtp": True, "H_cycles": 2, "hidden_size": 16},
    "memory": {"enabled": True, "capacity": 16, "num_heads": 2, "reward_threshold": -0.5},
    "dqn": {"enable_curiosity": True, "buffer_min_size": 20, "random_open_fraction": 0.4, "replay": "prioritized"},
}


def make_trainer(data: str, run: Path | None = None, **training: Any) -> Trainer:
    settings = {"global_batch_size": BATCH, "ema_decay": 0.9, **training}
    prepared = prepare(tiny.make_config(data={"path": data}, training=settings, **ALL), RunHooks())
    return Trainer(prepared.config, prepared.features, prepared.files, prepared.device, run)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ddp") / "data.h5"
    return str(tiny.write_capsules(path, {"train": 40, "validation": 12}, label_rank=2))


def gradient(rank: int, world: int, data: str, parts: int) -> dict[str, Tensor]:
    """Of this rank's rows of a batch in the middle of its episodes, with everything on, in float64."""
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    torch.set_default_dtype(torch.float64)
    trainer = make_trainer(data, accumulation_steps=parts)
    model, rows = trainer.state.model.double(), BATCH // world
    carry = tiny.make_carry(model, BATCH)
    labels = carry.labels.clone()
    labels[0] = labels[3] = IGNORE_LABEL  # no labels here, four each there
    labels[1, 1:] = labels[4, :2] = IGNORE_LABEL
    trainer.state.carry = take_rows(replace(carry, labels=labels), slice(rank * rows, (rank + 1) * rows))
    none = no_transitions(model.q_head.state_width, 1, trainer.device)
    result = trainer.taker.differentiate(none, policy_only=False)
    learned = {
        **dict(model.named_parameters()),
        **dict(trainer.taker.loss.curiosity.named_parameters(prefix="curiosity")),
    }
    return {
        "loss": result.loss.detach(),
        **{name: p.grad for name, p in learned.items() if p.grad is not None},
    }


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("world", "parts"), [(2, 1), *(pytest.param(*sizes, marks=_SLOW) for sizes in ((1, 4), (2, 2)))]
)
def test_the_gradient_is_that_of_one_process(data: str, tmp_path: Path, world: int, parts: int) -> None:
    """With uneven numbers of labels, in processes and in the parts of an accumulated batch alike."""
    (alone,) = on_ranks(1, tmp_path / "alone", gradient, data, 1)
    found = on_ranks(world, tmp_path / "together", gradient, data, parts)
    assert sum(name != "loss" and bool(value.any()) for name, value in alone.items()) > 20
    losses = torch.stack([each.pop("loss") for each in found])
    torch.testing.assert_close(losses.mean(), alone.pop("loss"), rtol=1e-9, atol=1e-9)
    for each in found:
        assert each.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(each[name], value, rtol=1e-6, atol=1e-9, msg=name)


def digests(trainer: Trainer) -> dict[str, str]:
    saved = trainer.state.shared({})
    tensors = {**saved.model, **{f"training.{name}": value for name, value in saved.training.items()}}
    found = {name: hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest() for name, value in tensors.items()}
    return {**found, "numbers": str(saved.state)}


def train_alike(rank: int, world: int, data: str) -> dict[str, Any]:
    trainer = make_trainer(data, total_steps=30)
    trainer.run(AllLoggers([]), StopFlag(), Hooks())
    before = digests(trainer)
    require_alike(trainer.state.shared({}))
    assert trainer.state.replay is not None
    replayed = trainer.state.replay.states.double().sum().item()
    if rank == world - 1:
        with torch.no_grad():
            trainer.state.model.answer.output.weight[0, 0] += 1e-6
    try:
        require_alike(trainer.state.shared({}))
    except DivergedError as error:
        return {"digests": before, "replay": replayed, "said": error.message}
    return {"digests": before, "replay": replayed, "said": ""}


@pytest.mark.slow
def test_processes_stay_alike_and_a_difference_is_noticed(data: str, tmp_path: Path) -> None:
    first, second = on_ranks(2, tmp_path, train_alike, data)
    assert first["digests"] == second["digests"]
    assert first["replay"] != second["replay"], "each has its own rows and its own buffer"
    for found in (first, second):
        assert "answer.output.weight (rank 1)" in found["said"]


def rows_seen(rank: int, world: int, data: str) -> list[Any]:
    """What is drawn for each of this rank's rows and which samples they get, in a few steps whose halts are planted."""
    trainer, seen = make_trainer(data), []
    for step in range(6):
        standing = trainer.standing()
        state, rows = trainer.state, trainer.taker.rows
        fresh = state.stream.take(len(standing.waiting), standing.rows_before, standing.rows_after)
        carry = trainer.taker.episodes.begin(state.carry, fresh, step, standing.waiting)
        opened = carry.capsules.expanded.sum(1).tolist()
        seen.append(list(zip(carry.capsules.sketches[:, 0, 0].tolist(), carry.price.tolist(), opened, strict=True)))
        numbers = torch.arange(rows) + rank * rows
        state.carry = replace(carry, halted=(numbers * 7 + step) % 3 == 0)
    return seen


@pytest.mark.slow
def test_the_number_of_processes_changes_neither_samples_nor_draws(data: str, tmp_path: Path) -> None:
    (alone,) = on_ranks(1, tmp_path / "1", rows_seen, data)
    for world in (2, 4):
        found = on_ranks(world, tmp_path / str(world), rows_seen, data)
        together = [[row for each in found for row in each[step]] for step in range(len(alone))]
        assert together == alone


def train_combinations(rank: int, world: int, files: dict[str, str], numbers: list[int]) -> list[str]:
    """Short runs of rows of the covering array; a fault's text, should there be one."""
    for number in numbers:
        row = ROWS[number]
        settings = overrides_of(row, Path(files[row["labels"]]), Path("unused"))
        prepared = prepare(load_config(None, [*settings, "training.predictor_steps=null"]).config, RunHooks())
        trainer = Trainer(prepared.config, prepared.features, prepared.files, prepared.device)
        for _ in range(6):
            trainer.taker.take(trainer.standing())
        try:
            require_alike(trainer.state.shared({}))
        except DivergedError as error:
            return [f"{row}: {error.message}"]
    return []


@pytest.mark.slow
@pytest.mark.parametrize("share", range(3))
def test_every_combination_trains_alike_in_two_processes(share: int, tmp_path: Path) -> None:
    """No parameter is left without a gradient, no exchange differs between the processes."""
    sizes = {"train": 40, "validation": 12}
    files = {
        name: str(tiny.write_capsules(tmp_path / f"{rank}.h5", sizes, label_rank=rank, parents=True))
        for rank, name in enumerate(FEATURES["labels"], start=1)
    }
    numbers = list(range(share, len(ROWS), 3))
    assert on_ranks(2, tmp_path / "ranks", train_combinations, files, numbers) == [[], []]


def one_faulty_rank(rank: int, world: int, data: str, folder: str) -> dict[str, Any]:
    """NaN in rank 1's loss at calls 4 to 6, and a disk that refuses rank 1's part of the first checkpoint."""
    run = Path(folder)
    trainer = make_trainer(data, run, total_steps=14, checkpoint_interval=2, max_skipped_steps=1)
    forward, calls = trainer.taker.loss.forward, iter(range(10**9))

    def faulty(*arguments: Any) -> Any:
        result = forward(*arguments)
        if rank == 1 and 4 <= next(calls) < 6:
            object.__setattr__(result, "loss", result.loss * torch.nan)
        return result

    trainer.taker.loss.forward = faulty  # type: ignore[method-assign]
    write, writes = saving.write_part, iter(range(10**9))

    def full(*arguments: Any) -> Any:
        if rank == 1 and next(writes) == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    saving.write_part = full
    said: list[str] = []
    outcome = trainer.run(AllLoggers([]), StopFlag(), Hooks(log=said.append))
    return {"outcome": outcome, "said": said, "digests": digests(trainer), "faults": vars(trainer.state.faults)}


@pytest.mark.slow
def test_a_fault_of_one_process_is_a_fault_of_all(data: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    first, second = on_ranks(2, tmp_path / "ranks", one_faulty_rank, data, str(run))
    assert first["outcome"] == second["outcome"] == "done"
    assert first["faults"] == second["faults"]
    assert first["faults"]["skipped"] == 2
    assert first["faults"]["rollbacks"] == 1
    assert first["digests"] == second["digests"]
    for found in (first, second):
        assert any("cannot save the checkpoint" in text and "No space left" in text for text in found["said"])
        assert any("warning: back to step_00000004" in text for text in found["said"])
    assert any("not finite (in another process)" in text for text in first["said"])
    assert [fault for fault in checkpoint_facts(run) if fault.fault is not None] == []
    assert checkpoint_facts(run)[0].step == 14
    assert not list((run / "checkpoints").glob(".step_*")), "nothing half-written is left"
