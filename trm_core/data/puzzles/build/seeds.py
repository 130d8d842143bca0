"""Random numbers that depend only on the seed and their purpose, not on who draws first."""

from __future__ import annotations

import numpy as np

# One number per use: the grid, the digging and the copies of a puzzle must not share random numbers.
SUBSAMPLE, SPLIT, GENERATE, AUGMENT, TRANSLATE = range(5)


def generator(seed: int, use: int, index: int = 0) -> np.random.Generator:
    """Random numbers of puzzle `index` for one use."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, use, index])))
