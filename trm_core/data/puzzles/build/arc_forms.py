"""Which ARC tasks are the same under several names: unchanged, turned or mirrored, recoloured, or in another order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from itertools import groupby, permutations, product

import numpy as np

from trm_core.data.build.arc import COLOURS, GridPair
from trm_core.data.puzzles.arc_copies import TRANSFORMS, transformed

_MOST_ORDERS = 720  # colour orders that are tried


def form_of(pairs: Sequence[GridPair]) -> str:
    """The same for all copies of a task; outputs, which may be unknown, are ignored. A copy passes for another task if
    too many colours cannot be told apart (`_names`).
    """
    inputs = [pair.input for pair in pairs]

    def seen_as(transform: int, named: np.ndarray) -> bytes:
        grids = (transformed(named[grid], transform) for grid in inputs)
        return b"|".join(sorted(f"{grid.shape}".encode() + grid.tobytes() for grid in grids))

    found = min(seen_as(transform, named) for named in _names(inputs) for transform in range(TRANSFORMS))
    return hashlib.sha256(found).hexdigest()


def _names(grids: list[np.ndarray]) -> Iterator[np.ndarray]:
    """New names for colours 0 to 9, in the order of how often the grids hold them and how often they touch themselves.
    Ties are yielded in every order, if there are not too many.
    """

    def told_by(colour: int) -> tuple[list[int], int]:
        cells = [grid == colour for grid in grids]
        beside = sum(int((one[1:] & one[:-1]).sum() + (one[:, 1:] & one[:, :-1]).sum()) for one in cells)
        return sorted(-int(one.sum()) for one in cells), beside

    known = {colour: told_by(colour) for colour in range(1, COLOURS) if any((grid == colour).any() for grid in grids)}
    tied = [list(group) for _, group in groupby(sorted(known, key=lambda c: known[c]), key=lambda c: known[c])]
    if math.prod(math.factorial(len(group)) for group in tied) > _MOST_ORDERS:
        tied = [[colour] for group in tied for colour in group]
    for orders in product(*(permutations(group) for group in tied)):
        named = np.zeros(COLOURS, dtype=np.uint8)  # 0, the background, stays
        for name, colour in enumerate((colour for order in orders for colour in order), start=1):
            named[colour] = name
        yield named
