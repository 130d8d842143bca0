"""Resuming with another number of processes or another batch size: the same rows in the same order, divided anew.

What all processes share does not depend on their number, and neither do the order of the data and the keyed draws. The
rows of the carry form one list, which is cut again. A replay buffer cannot be divided: it is handed on whole, to more
than one process if there are more than before, or dropped.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from trm_core.training.checkpoint import OwnState, load_own
from trm_core.training.checkpoint_folders import ranks_in

PRICES, HALTED, SLOT = "carry.capsules.prices", "carry.halted", "carry.pending.slot"


def regrouped(folder: Path, rank: int, world_size: int, rows: int) -> tuple[OwnState, list[str]]:
    """What `rank` of `world_size` processes with `rows` rows each resumes with, and notes on what is not exact."""
    ranks = ranks_in(folder)
    heir_of = rank % ranks
    mine = load_own(folder, heir_of)
    saved = len(mine.tensors[HALTED])
    if (ranks, saved) == (world_size, rows):
        return mine, []
    owns = [mine if other == heir_of else load_own(folder, other) for other in range(ranks)]
    carry = {name: torch.cat([own.tensors[name] for own in owns]) for name in mine.tensors if is_rows(name)}
    owner = torch.arange(ranks).repeat_interleave(saved)
    # A row whose state is in another process's buffer loses the reward of its last action.
    carry[SLOT] = torch.where(owner == heir_of, carry[SLOT], -1)
    first = rank * rows
    tensors = {name: _cut(name, values, first, rows) for name, values in carry.items()}
    kept = {name: values for name, values in mine.tensors.items() if name.startswith("replay.") or name == PRICES}
    return OwnState({**kept, **tensors}, mine.numbers), _inexact(ranks, saved, world_size, rows)


def is_rows(name: str) -> bool:
    """Whether a saved tensor has a value per row of the batch."""
    return name.startswith("carry.") and name != PRICES


def _cut(name: str, values: Tensor, first: int, rows: int) -> Tensor:
    """[rows, ...]: the rows from `first` on; rows beyond the saved ones begin a new episode."""
    index = torch.arange(first, first + rows)
    cut = values[index % len(values)].clone()
    if name == HALTED:
        cut[index >= len(values)] = True
    if name == SLOT:
        cut[index >= len(values)] = -1
    return cut


def _inexact(ranks: int, saved: int, world_size: int, rows: int) -> list[str]:
    notes = []
    before, now = ranks * saved, world_size * rows
    if before != now:
        what = "the new rows begin with new samples" if now > before else f"the last {before - now} rows are dropped"
        notes.append(f"the batch was {before} rows and is {now}: {what}")
    if ranks != world_size:
        replay = (
            f"replay buffers of processes {world_size} to {ranks - 1} are dropped"
            if world_size < ranks
            else f"processes {ranks} to {world_size - 1} start with copies of the replay buffers of others"
        )
        notes.append(
            f"the run had {ranks} processes and has {world_size}: data, schedules and exploration continue unchanged; "
            f"{replay}, rows that changed process lose one reward, and dropout draws different numbers"
        )
    return notes
