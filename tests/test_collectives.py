"""Collective sums and exchanges of rows over real gloo processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import on_ranks
from torch import Tensor

from trm_core.distributed.collectives import all_rows, all_sum, on_every_rank, world_size
from trm_core.errors import DataError, TrmError


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


def _fails(rank: int, world: int, messages: list[str | None]) -> tuple[str, int, bool]:
    def work() -> None:
        if messages[rank] is not None:
            raise DataError(str(messages[rank]))

    with pytest.raises(TrmError) as error:
        on_every_rank(work)
    return error.value.message, int(error.value.exit_code), error.value.told_by_another


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        (["gone", "gone", "gone"], [("gone", False), ("gone", True), ("gone", True)]),
        ([None, "gone", "torn"], [("gone", True), ("gone", False), ("torn", False)]),
    ],
)
def test_an_error_of_one_rank_is_raised_on_all_and_told_by_the_first_that_has_it(
    tmp_path: Path, messages: list[str | None], told: list[tuple[str, bool]]
) -> None:
    found = on_ranks(3, tmp_path, _fails, messages)
    assert found == [(message, 4, elsewhere) for message, elsewhere in told]


def test_one_process_needs_no_group() -> None:
    values = torch.arange(3.0)
    assert world_size() == 1
    assert all_sum(values) is values
    assert all_rows(values) is values
