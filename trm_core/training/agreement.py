"""What the processes of a run tell each other between two steps, and the check that they still hold the same state."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch
from torch import Tensor

from trm_core.distributed.collectives import json_of_each_rank, of_each_rank, rank
from trm_core.errors import DivergedError
from trm_core.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Standing:
    """Where all processes stand before a step, from one exchange of a few numbers."""

    waiting: Tensor  # [n] int64 in host memory: rows of this rank that have halted, each of which needs a new sample
    rows_before: int  # those that lower ranks need
    rows_after: int  # those that higher ranks need
    can_replay: bool  # every rank has enough transitions
    stop: int  # the lowest number of any rank's reason to stop; 0: none
    saved: bool  # every rank has written its part of the checkpoint under way


def exchange(halted: Tensor, can_replay: bool, stop: int, saved: bool) -> Standing:
    """`halted` [B] bool, of this rank. Goes through host memory: no GPU takes part, once it has told what halted."""
    waiting = halted.cpu().nonzero().squeeze(1)
    everyone = of_each_rank(torch.tensor([len(waiting), can_replay, stop, saved], dtype=torch.int64))
    wanted, replays, stops, saves = everyone.T.tolist()
    return Standing(
        waiting=waiting,
        rows_before=sum(wanted[: rank()]),
        rows_after=sum(wanted[rank() + 1 :]),
        can_replay=all(replays),
        stop=min((number for number in stops if number), default=0),
        saved=all(saves),
    )


def fingerprints(checkpoint: Checkpoint) -> dict[str, int]:
    """A hash of every tensor, and one of all numbers, that must be the same in all processes."""
    found = {
        name: int(torch.hash_tensor(tensor.detach().contiguous().flatten()).view(torch.int64))
        for part in (checkpoint.model, checkpoint.training)
        for name, tensor in part.items()
        if tensor.numel()
    }
    numbers = json.dumps(checkpoint.state, sort_keys=True).encode()
    found["state.json"] = int.from_bytes(hashlib.sha256(numbers).digest()[:7])
    return found


def require_alike(checkpoint: Checkpoint) -> None:
    """Raises DivergedError, in every process, naming what differs between them."""
    mine = fingerprints(checkpoint)
    summary = of_each_rank(_summary(mine))
    if bool((summary == summary[0]).all()):
        return
    first, *others = json_of_each_rank(mine)
    unlike = [
        f"{name} (rank {number})"
        for number, other in enumerate(others, start=1)
        for name in sorted(first.keys() | other.keys())
        if first.get(name) != other.get(name)
    ]
    raise DivergedError(
        f"step {checkpoint.step}: the processes are no longer alike: {', '.join(unlike[:5])}",
        hint="return to a checkpoint with --resume; if it happens again, compare versions and hardware of the machines",
    )


def _summary(fingerprints: dict[str, int]) -> Tensor:
    """[4] int64: a hash of the fingerprints, which is all that is sent while nothing is wrong."""
    digest = hashlib.sha256(json.dumps(fingerprints, sort_keys=True).encode()).digest()
    return torch.frombuffer(bytearray(digest), dtype=torch.int64)
