"""Which copies of an ARC task a run has embeddings for, told from the marks of names alone.

A run records a CRC-32 of each identifier's name, not the names. But a task has only 8 x 9! names of copies, so a mark
is that of one of them by chance in 0.07 % of cases, and every builder numbers copies after their task: the numbers
after a task's own are its copies as long as their marks are among those of these names. Two of the names share a mark
in 0.03 % of cases; which of the two copies such a number is cannot be told, and it is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import chain, permutations
from math import factorial
from zlib import crc32

import numpy as np

from trm_core.data.build.arc import COLOURS
from trm_core.data.puzzles.arc_copies import SEPARATOR, TRANSFORMS, Copy
from trm_core.data.puzzles.identifiers import checksum_of, number_of

_BLOCK = 1024  # numbers looked up at once
_PLAIN = Copy(0, np.arange(COLOURS, dtype=np.uint8))
_TEMPLATE = Copy(0, np.zeros(COLOURS, dtype=np.uint8)).name("").encode()  # what a copy's name has after the task's
_TRANSFORM_PLACE = len(SEPARATOR) + 1  # of the digit that tells the transform
_COLOUR_PLACE = len(_TEMPLATE) - COLOURS + 1  # of the digit that colour 1 becomes


@dataclass(frozen=True)
class KnownCopy:
    """A copy of a task, or the task itself, by the name and number of its identifier."""

    name: str
    number: int
    copy: Copy = _PLAIN


def known_copies(task: str, marks: np.ndarray, most: int) -> list[KnownCopy]:
    """The task itself and its copies in the order of their numbers, `most` in all; none where the model does not know
    the task. marks: uint32, of `recorded_marks`.
    """
    own = number_of(task, marks)
    if own is None:
        return []
    first, found = own + 1, [KnownCopy(task, own)]
    place, names = _names(checksum_of(task), marks[first : _end(checksum_of(task), marks, first)])
    for offset in np.flatnonzero(names == 1).tolist():
        transform, row = divmod(int(_suffixes()[1][place[offset]]), len(_colours()))
        copy = Copy(transform, np.array([0, *_colours()[row]], dtype=np.uint8))
        found.append(KnownCopy(copy.name(task), first + offset, copy))
    return found[:most]


def _end(task: int, marks: np.ndarray, first: int) -> int:
    """Where the copies end that begin at `first`, of the task whose name has this checksum."""
    end = len(marks)
    for begin in range(first, len(marks), _BLOCK):
        others = np.flatnonzero(_names(task, marks[begin : begin + _BLOCK])[1] == 0)
        if len(others):
            end = begin + int(others[0])
            break
    # The last one may be the next task, by chance. Then what follows are copies of that.
    if first < end < len(marks) and _names(int(marks[end - 1]), marks[end : end + 1])[1][0]:
        return end - 1
    return end


def _names(task: int, marks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the copies of the task whose name has this checksum: where among `_suffixes` those with each mark begin, and
    how many there are.
    """
    # A CRC is affine: what precedes texts of one length changes the same bits of all their checksums.
    wanted = marks ^ np.uint32(crc32(_TEMPLATE, task) ^ crc32(_TEMPLATE))
    low, high = (np.searchsorted(_suffixes()[0], wanted, side) for side in ("left", "right"))
    return low, high - low


@cache
def _colours() -> np.ndarray:
    """uint8 [9!, 9]: every permutation of the colours 1 to 9."""
    count = factorial(COLOURS - 1)
    flat = np.fromiter(chain.from_iterable(permutations(range(1, COLOURS))), np.uint8, count * (COLOURS - 1))
    return flat.reshape(count, COLOURS - 1)


@cache
def _suffixes() -> tuple[np.ndarray, np.ndarray]:
    """uint32 [8 x 9!] each: the checksums, in their order, of all that may follow a task's name in a copy's; and which
    copies these are, as transform x 9! + row of `_colours`.
    """
    transforms = _changes(_TRANSFORM_PLACE, TRANSFORMS)
    sums = np.full(len(_colours()), crc32(_TEMPLATE), np.uint32)
    for place in range(COLOURS - 1):
        sums ^= _changes(_COLOUR_PLACE + place, COLOURS)[_colours()[:, place]]
    every = (transforms[:, None] ^ sums).ravel()
    order = every.argsort().astype(np.uint32)
    return every[order], order


def _changes(place: int, digits: int) -> np.ndarray:
    """uint32 [digits]: the bits of the checksum that each digit at a place of the template changes. Since a CRC is
    affine, those of several places add up.
    """
    changed = [_TEMPLATE[:place] + str(digit).encode() + _TEMPLATE[place + 1 :] for digit in range(digits)]
    return np.array([crc32(one) ^ crc32(_TEMPLATE) for one in changed], np.uint32)
