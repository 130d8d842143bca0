"""Random numbers that depend on the seed and on what they are for, and not on who draws first."""

from __future__ import annotations

import numpy as np

# One number for each use: the same puzzle's grid, digging and copies must not share random numbers.
SUBSAMPLE, SPLIT, GENERATE, AUGMENT, TRANSLATE = range(5)


def generator(seed: int, use: int, index: int = 0) -> np.random.Generator:
    """Random numbers of puzzle `index` for one use."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, use, index])))
