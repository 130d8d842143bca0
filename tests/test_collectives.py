"""Sums and rows over real gloo processes."""

from __future__ import annotations

from pathlib import Path

import torch
from ranks import on_ranks
from torch import Tensor

from trm_core.distributed.collectives import all_rows, all_sum, world_size


def _work(rank: int, world: int) -> tuple[int, Tensor, Tensor, Tensor]:
    mine = torch.full((rank + 1, 2), float(rank))
    total = all_sum(mine.sum())
    return world_size(), total, all_rows(mine), all_rows(torch.zeros(0 if rank else 3, 2))


def test_every_rank_sees_the_sum_and_all_rows_in_rank_order(tmp_path: Path) -> None:
    for world, total, rows, some in on_ranks(3, tmp_path, _work):
        assert world == 3
        assert float(total) == 2 * (0 * 1 + 1 * 2 + 2 * 3)
        assert rows[:, 0].tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 2.0]
        assert some.shape == (3, 2)


def test_one_process_needs_no_group() -> None:
    values = torch.arange(3.0)
    assert world_size() == 1
    assert all_sum(values) is values
    assert all_rows(values) is values
