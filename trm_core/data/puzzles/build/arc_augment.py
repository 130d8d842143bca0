"""Drawing the augmented copies of an ARC task, and laying their pairs into sequences of tokens.

Everything is drawn from generators keyed by seed, task and purpose, so it depends neither on the other tasks nor on
which process does the work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from trm_core.data.build.arc import COLOURS, MAX_SIDE, GridPair
from trm_core.data.build.records import digest_bytes
from trm_core.data.puzzles.arc_copies import TRANSFORMS, Copy, transformed
from trm_core.data.puzzles.arc_tokens import FIRST_COLOUR, PAD, SEQUENCE, lay
from trm_core.data.puzzles.build.seeds import AUGMENT, TRANSLATE, generator

_DRAWS = 5  # at most, for each copy that is wanted; as in the public code
_TURNED = np.array([t in (1, 3, 6, 7) for t in range(TRANSFORMS)])  # transforms that swap height and width


@dataclass(frozen=True)
class Copies:
    """n copies of a task. transforms: uint8 [n]; colours: uint8 [n, 10]. The first is the task as it is."""

    transforms: np.ndarray
    colours: np.ndarray

    def __len__(self) -> int:
        return len(self.transforms)

    def names(self, task: str) -> Iterator[str]:
        """The identifiers of the copies; the first is the task's own name."""
        yield task
        for transform, colours in zip(self.transforms[1:], self.colours[1:], strict=True):
            yield Copy(int(transform), colours).name(task)

    def part(self, start: int, stop: int) -> Copies:
        return Copies(self.transforms[start:stop], self.colours[start:stop])


def draw_copies(name: str, pairs: Sequence[GridPair], count: int, seed: int) -> Copies:
    """The task `name` itself and `count` copies of its `pairs`, all different.

    Copies that repeat an earlier one (a symmetric task in few colours has many) are drawn again, but there may be fewer
    than `count`.
    """
    random = generator(seed, AUGMENT, digest_bytes(name.encode()))
    digest_of = _Digests(pairs)
    plain = np.arange(COLOURS, dtype=np.uint8)
    seen = {digest_of(0, plain)}
    transforms, colours = [0], [plain]
    left = _DRAWS * count
    while wanted := min(count + 1 - len(transforms), left):
        left -= wanted
        drawn_transforms = random.integers(TRANSFORMS, size=wanted)
        drawn_colours = np.tile(plain, (wanted, 1))
        drawn_colours[:, 1:] = random.permuted(drawn_colours[:, 1:], axis=1)
        for transform, permutation in zip(drawn_transforms.tolist(), drawn_colours, strict=True):
            digest = digest_of(transform, permutation)
            if digest not in seen:
                seen.add(digest)
                transforms.append(transform)
                colours.append(permutation)
    return Copies(np.array(transforms, dtype=np.uint8), np.stack(colours))


def lay_copies(
    name: str, pairs: Sequence[GridPair], copies: Copies, first: int, *, seed: int, translate: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels uint8 [n * E, 900] for the E `pairs` of n `copies`, all pairs of a copy together.

    With `translate`, all pairs of a copy but one are moved by a random offset, the same for input and output. `first`
    is the number of the first copy among all of the task's copies. A missing output is all padding, which is ignored.
    """
    count, examples = len(copies), len(pairs)
    tables = np.zeros((count, FIRST_COLOUR + COLOURS), dtype=np.uint8)
    tables[:, :FIRST_COLOUR] = np.arange(FIRST_COLOUR)
    tables[:, FIRST_COLOUR:] = copies.colours + FIRST_COLOUR
    laid = np.full((2, count, examples, MAX_SIDE, MAX_SIDE), PAD, dtype=np.uint8)
    for transform in np.unique(copies.transforms).tolist():
        members = np.flatnonzero(copies.transforms == transform)
        for number, pair in enumerate(pairs):
            for side, grid in enumerate((pair.input, pair.output)):
                if grid is not None:
                    laid[side, members, number] = tables[members][:, lay(transformed(grid, transform))]
    if translate:
        _translate(laid, _offsets(name, pairs, copies, first, seed))
    inputs, labels = laid.reshape(2, count * examples, SEQUENCE)
    return inputs, labels


def _offsets(name: str, pairs: Sequence[GridPair], copies: Copies, first: int, seed: int) -> np.ndarray:
    """int64 [n, E, 2]: rows and columns to move each pair by, such that both its grids stay inside the square."""
    random = generator(seed, TRANSLATE, digest_bytes(name.encode(), str(first).encode()))
    heights, widths = (
        np.array([max(grid.shape[axis] for grid in (p.input, p.output) if grid is not None) for p in pairs])
        for axis in (0, 1)
    )
    turned = _TURNED[copies.transforms][:, None]
    sides = np.stack([np.where(turned, widths, heights), np.where(turned, heights, widths)], axis=-1)
    offsets = random.integers(MAX_SIDE - sides + 1)
    offsets[np.arange(len(copies)), random.integers(len(pairs), size=len(copies))] = 0
    return offsets


def _translate(laid: np.ndarray, offsets: np.ndarray) -> None:
    """Move the squares of `laid` [2, n, E, 30, 30] down and right by `offsets` [n, E, 2], in place."""
    for copy, number in np.argwhere(offsets.any(axis=-1)).tolist():
        down, right = offsets[copy, number].tolist()
        squares = laid[:, copy, number]
        # Only end markers can be cut off, where there is no room for them any more.
        moved = squares[:, : MAX_SIDE - down, : MAX_SIDE - right].copy()
        squares[:] = PAD
        squares[:, down:, right:] = moved


class _Digests:
    """Tells copies of a task apart by what they show: the same pairs in another order are the same copy."""

    def __init__(self, pairs: Sequence[GridPair]) -> None:
        self._pairs = pairs
        self._under = cache(self._transformed)

    def __call__(self, transform: int, colours: np.ndarray) -> bytes:
        flat, parts = self._under(transform)
        recoloured = colours[flat].tobytes()
        shown = sorted(shape + recoloured[start:stop] for shape, start, stop in parts)
        return hashlib.blake2b(b"".join(shown), digest_size=16).digest()

    def _transformed(self, transform: int) -> tuple[np.ndarray, list[tuple[bytes, int, int]]]:
        """All cells of all grids under a transform in a row, with the shapes and the cell range of each pair."""
        cells: list[np.ndarray] = []
        parts: list[tuple[bytes, int, int]] = []
        start = 0
        for pair in self._pairs:
            grids = [transformed(grid, transform) for grid in (pair.input, pair.output) if grid is not None]
            stop = start + sum(grid.size for grid in grids)
            parts.append((bytes(side for grid in grids for side in grid.shape), start, stop))
            cells += [grid.ravel() for grid in grids]
            start = stop
        return np.concatenate(cells), parts
