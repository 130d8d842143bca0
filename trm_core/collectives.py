"""The few collective operations of the project, each the identity in a single process.

What must be the same on every rank (codebook, memory bank, counters, reward scale, loss weights) is computed from sums
or rows of all ranks, in rank order, so that every rank computes it alike.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Processes that train together; 1 outside of torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among `world_size`; 0 outside of torch.distributed."""
    return dist.get_rank() if world_size() > 1 else 0


def all_sum(values: Tensor) -> Tensor:
    """The sum of `values` over all ranks, as a new tensor; `values` itself in a single process."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def all_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks in rank order: [n, ...] -> [sum of n, ...]. Ranks may hold different numbers of rows."""
    if world_size() == 1:
        return rows
    mine = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(mine) for _ in range(world_size())]
    dist.all_gather(counts, mine)
    most = max(int(count) for count in counts)
    # all_gather wants equal shapes: pad, gather, cut.
    padded = torch.zeros(most, *rows.shape[1:], dtype=rows.dtype, device=rows.device)
    padded[: len(rows)] = rows
    gathered = [torch.zeros_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[: int(count)] for part, count in zip(gathered, counts, strict=True)])
