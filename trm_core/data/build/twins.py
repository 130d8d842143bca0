"""Samples that encoding made identical: different words that the encoder cannot tell apart, augmented pictures.

They count as duplicates like any others: none may be both in the training split and in a held-out one. Used while
building, and by the inspection of any capsule file.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trm_core.data.build.records import Log, digest_bytes
from trm_core.data.build.splits import TRAIN, joined
from trm_core.data.fields import SPLITS

DROPPED = -1


def row_digests(fields: Mapping[str, np.ndarray]) -> np.ndarray:
    """uint64 [n]: equal for samples that a model cannot tell apart. Takes sketches and, if there, children and mask."""
    arrays = [np.ascontiguousarray(fields[name]) for name in ("sketches", "children", "mask") if name in fields]
    return np.asarray(
        [digest_bytes(*(values[row].tobytes() for values in arrays)) for row in range(len(arrays[0]))], dtype=np.uint64
    )


def separate_twins(
    split: np.ndarray, digests: np.ndarray, augmented: np.ndarray, log: Log, groups: np.ndarray | None = None
) -> np.ndarray:
    """Split codes without duplicates across splits: augmented copies that equal a held-out sample are dropped, and
    held-out duplicates move to the earliest split among them, with their whole group if there are `groups`.

    All arrays [rows]; returns a copy of `split`, with DROPPED for rows that must not be written.
    """
    result = split.copy()
    held_out = np.unique(digests[split != TRAIN])
    clash = augmented & np.isin(digests, held_out)
    result[clash] = DROPPED
    if clash.any():
        log(f"{int(clash.sum())} copies of training samples are identical to a held-out sample and were left out")
    kept = np.flatnonzero(~clash)
    _, together = np.unique(digests[kept], return_inverse=True)
    if groups is not None:
        together = joined(together, groups[kept])
    earliest = np.full(int(together.max()) + 1, len(SPLITS), dtype=np.int8)
    np.minimum.at(earliest, together, split[kept])
    moved_to = earliest[together]
    moved = moved_to != split[kept]
    result[kept] = moved_to
    if moved.any():
        told = "look the same, once encoded, as one of an earlier split"
        told += " and were moved there" if groups is None else ", or belong to one that does, and were moved there"
        log(f"{int(moved.sum())} held-out samples {told}")
    return result
