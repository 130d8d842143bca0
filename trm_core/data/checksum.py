"""Checksums: a fixed, seeded random projection of a capsule's children.

Written by the builders, recomputed by `CapsuleFile.verify`, predicted by the model's checksum head. The seed is in the
file's manifest, so anybody can recompute them.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_TAG = 0x7472_6D63  # keeps these numbers apart from any other use of the same seed


@lru_cache(maxsize=4)
def projection(m: int, dim: int, width: int, seed: int) -> np.ndarray:
    """[m * dim, width] float32, standard normal / sqrt(m * dim); read-only, because it is shared.

    Children of RMS 1 give checksums of standard deviation 1. `RandomState` rather than `default_rng`, because NumPy
    promises that its numbers never change: files written today must verify in later versions.
    """
    if min(m, dim, width) < 1 or seed < 0:
        raise ValueError(f"projection needs m, dim, width >= 1 and seed >= 0, got {m=}, {dim=}, {width=}, {seed=}")
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([_TAG, seed, m, dim, width])))
    matrix = (random.standard_normal((m * dim, width)) / np.sqrt(m * dim)).astype(np.float32)
    matrix.flags.writeable = False
    return matrix


def checksums(children: np.ndarray, width: int, seed: int) -> np.ndarray:
    """[n, k, width] float32 checksums of children [n, k, m, D] (any float dtype)."""
    n, k, m, dim = children.shape
    flat = children.reshape(n, k, m * dim).astype(np.float32)
    return flat @ projection(m, dim, width, seed)
