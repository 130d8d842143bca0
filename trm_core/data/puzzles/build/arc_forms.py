"""Which ARC tasks are one under several names: as they are, turned or mirrored, recoloured, in another order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from trm_core.data.build.arc import COLOURS, GridPair
from trm_core.data.puzzles.arc_copies import TRANSFORMS, transformed


def form_of(pairs: Sequence[GridPair]) -> str:
    """The same for all copies of a task; outputs, which may be unknown, are not looked at.

    Colours are told apart by how often the task has them, so a recoloured copy of one that has two equally often may
    pass for another task.
    """
    inputs = [pair.input for pair in pairs]
    counts = np.bincount(np.concatenate([grid.ravel() for grid in inputs]), minlength=COLOURS)
    named = np.zeros(COLOURS, dtype=np.uint8)  # 0, the background, stays
    named[1 + np.argsort(-counts[1:], kind="stable")] = np.arange(1, COLOURS)
    recoloured = [named[grid] for grid in inputs]

    def seen_as(transform: int) -> bytes:
        grids = (transformed(grid, transform) for grid in recoloured)
        return b"|".join(sorted(f"{grid.shape}".encode() + grid.tobytes() for grid in grids))

    return hashlib.sha256(min(seen_as(transform) for transform in range(TRANSFORMS))).hexdigest()
