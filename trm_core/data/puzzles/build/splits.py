"""Which puzzles are held out, and which are trained on."""

from __future__ import annotations

import numpy as np

from trm_core.data.puzzles.build.seeds import SPLIT, SUBSAMPLE, generator
from trm_core.errors import DataError


def split_by_form(forms: np.ndarray, share: float, seed: int) -> np.ndarray:
    """[M] bool, true for the test split: about `share` of the puzzles, those of one form (`forms` [M]) always together.

    Whole forms are held out in random order as long as they fit; if none fits, the rarest one is.
    """
    if share <= 0 or not len(forms):
        return np.zeros(len(forms), dtype=bool)
    distinct, member, sizes = np.unique(forms, return_inverse=True, return_counts=True)
    if len(distinct) < 2:
        raise DataError(
            f"all {len(forms)} puzzles are symmetric copies of one: there is none to hold out",
            hint="give more puzzles, a file of held-out ones with --test-source, or data.puzzles.test=0",
        )
    room = max(1, round(share * len(forms)))
    held_out = np.zeros(len(distinct), dtype=bool)
    order = generator(seed, SPLIT).permutation(len(distinct))
    for form in order[: len(order) - 1]:  # at least one form is trained on
        if sizes[form] <= room:
            held_out[form] = True
            room -= int(sizes[form])
    if not held_out.any():
        held_out[order[sizes[order].argmin()]] = True
    return held_out[member.ravel()]


def subsample(count: int, wanted: int | None, seed: int) -> np.ndarray:
    """Indices of `wanted` puzzles out of `count`, in their order; all of them if there are no more."""
    if wanted is None or wanted >= count:
        return np.arange(count)
    return np.sort(generator(seed, SUBSAMPLE).choice(count, wanted, replace=False))
