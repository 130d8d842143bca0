"""Rows of a checkpoint among other processes, or in another batch: each row once, in order, with what it may keep."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from trm_core.training.checkpoint import Checkpoint, OwnState, complete, write_part
from trm_core.training.checkpoint_folders import unfinished
from trm_core.training.checkpoint_verify import verify
from trm_core.training.regroup import regrouped

BATCH = 12


def own(rank: int, ranks: int) -> OwnState:
    rows = BATCH // ranks
    number = torch.arange(rank * rows, (rank + 1) * rows)
    return OwnState(
        {
            "carry.steps": number,
            "carry.z_H": number[:, None] * torch.ones(2),
            "carry.halted": number % 5 == 0,
            "carry.pending.slot": number + 100,
            "carry.capsules.prices": torch.ones(7),
            "replay.states": torch.full((3,), float(rank)),
            "generator": torch.zeros(4, dtype=torch.uint8),
        },
        {"replay": {"head": rank}},
    )


def save(run: Path, ranks: int) -> Path:
    folder, files = unfinished(run, 3, "token"), {}
    for rank in range(ranks):
        part = Checkpoint(3, {"w": torch.ones(1)}, {"t": torch.ones(1)}, {"step": 3}, own(rank, ranks))
        files |= write_part(folder, part, rank)
    final = complete(run, 3, folder, files)
    verify(final)
    return final


def among(folder: Path, world: int, batch: int = BATCH) -> list[dict[str, Tensor]]:
    return [regrouped(folder, rank, world, batch // world)[0].tensors for rank in range(world)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_row_is_there_once_and_in_order(tmp_path: Path, ranks: int, world: int) -> None:
    found = among(save(tmp_path, ranks), world)
    assert torch.cat([part["carry.steps"] for part in found]).tolist() == list(range(BATCH))
    assert torch.cat([part["carry.z_H"] for part in found])[:, 0].tolist() == list(range(BATCH))
    for rank, part in enumerate(found):
        owner = rank % ranks
        assert part["replay.states"].tolist() == [float(owner)] * 3
        assert part["carry.capsules.prices"].shape == (7,)
        # A row keeps the slot of its last state only where the buffer that holds it went.
        mine = part["carry.steps"] // (BATCH // ranks) == owner
        assert torch.equal(part["carry.pending.slot"], torch.where(mine, part["carry.steps"] + 100, -1))
        assert ("generator" in part) == (ranks == world)


def test_what_is_not_exact_is_said(tmp_path: Path) -> None:
    folder = save(tmp_path, 2)
    assert regrouped(folder, 0, 2, 6)[1] == []
    (fewer,) = regrouped(folder, 0, 1, 12)[1]
    assert "had 2 processes and has 1" in fewer
    assert "buffers of processes 1 to 1 are dropped" in fewer
    (more,) = regrouped(folder, 2, 4, 3)[1]
    assert "processes 2 to 3 start with copies" in more


@pytest.mark.parametrize("world", [1, 2])
def test_another_batch(tmp_path: Path, world: int) -> None:
    folder = save(tmp_path, 2)
    larger = among(folder, world, 16)
    halted = torch.cat([part["carry.halted"] for part in larger])
    assert halted[:BATCH].tolist() == [number % 5 == 0 for number in range(BATCH)]
    assert halted[BATCH:].all(), "the new rows begin with new samples"
    assert (torch.cat([part["carry.pending.slot"] for part in larger])[BATCH:] == -1).all()
    smaller = among(folder, world, 8)
    assert torch.cat([part["carry.steps"] for part in smaller]).tolist() == list(range(8))
    assert any("the batch was 12 rows and is 8" in note for note in regrouped(folder, 0, world, 8 // world)[1])
