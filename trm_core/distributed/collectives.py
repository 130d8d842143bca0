"""The few collective operations of the project, each the identity in a single process.

What must be the same on every rank (codebook, memory bank, counters, reward scale, loss weights) is computed from sums
or rows of all ranks, in rank order, so that every rank gets the same result.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from trm_core.errors import ExitCode, TrmError

Value = TypeVar("Value")


def world_size() -> int:
    """How many processes train together; 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among `world_size`; 0 outside torch.distributed."""
    return dist.get_rank() if world_size() > 1 else 0


def all_sum(values: Tensor) -> Tensor:
    """The sum of `values` over all ranks, as a new tensor; `values` itself in a single process."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def of_each_rank(values: Tensor) -> Tensor:
    """[world size, ...]: the `values` of every rank, which must have the same shape everywhere."""
    if world_size() == 1:
        return values[None]
    gathered = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(gathered, values.contiguous())
    return torch.stack(gathered)


def all_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks in rank order: [n, ...] -> [sum of n, ...]. Ranks may hold different numbers of rows."""
    if world_size() == 1:
        return rows
    counts = of_each_rank(torch.tensor(len(rows), device=rows.device)).tolist()
    # all_gather needs equal shapes: pad, gather, cut.
    padded = torch.zeros(max(counts), *rows.shape[1:], dtype=rows.dtype, device=rows.device)
    padded[: len(rows)] = rows
    return torch.cat([part[:count] for part, count in zip(of_each_rank(padded), counts, strict=True)])


def json_of_each_rank(value: Any) -> list[Any]:
    """A JSON value of every rank, in rank order. Nothing is pickled."""
    if world_size() == 1:
        return [value]
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = of_each_rank(torch.tensor(len(text))).tolist()
    whole = all_rows(text).numpy().tobytes()
    ends = [sum(lengths[: rank + 1]) for rank in range(len(lengths))]
    return [json.loads(whole[end - length : end]) for end, length in zip(ends, lengths, strict=True)]


def of_first_rank(value: Any) -> Any:
    """Rank 0's JSON value, on every rank."""
    return json_of_each_rank(value)[0]


def on_every_rank(work: Callable[[], Value]) -> Value:
    """What `work` returns on this rank, once all ranks are done. A TrmError of one rank is raised on all."""
    value, mine = None, None
    try:
        value = work()
    except TrmError as error:
        mine = error
    told = None if mine is None else {"message": mine.message, "hint": mine.hint, "code": int(mine.exit_code)}
    errors = json_of_each_rank(told)
    if mine is not None:
        mine.told_by_another = errors.index(told) < rank()
        raise mine
    for first in filter(None, errors):
        theirs = TrmError(first["message"], hint=first["hint"])
        theirs.exit_code, theirs.told_by_another = ExitCode(first["code"]), True
        raise theirs
    return cast("Value", value)


def from_first_rank(work: Callable[[], Any]) -> Any:
    """What `work` returns (a JSON value) on rank 0, which alone runs it. Its TrmError is raised on all ranks."""
    return of_first_rank(on_every_rank(lambda: work() if rank() == 0 else None))
