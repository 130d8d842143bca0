"""The order of training rows, as a pure function of (seed, epoch, position).

A split of N rows is cut into blocks of consecutive rows (one block is one read). Each epoch visits the blocks in a
pseudo-random order, several at a time: such a group is a *window*, whose rows are then shuffled among themselves. No
permutation of all rows is ever held: blocks are permuted by a keyed bijection (a Feistel network over their numbers).

Used by `trm_core.data.stream`; nothing is read here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ROUNDS = 8


def mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele, Lea and Flood, 2014) on uint64, element by element."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def key_of(*parts: int) -> np.ndarray:
    """A uint64 key [1] from integers; different tuples give unrelated keys."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = mix(key * _GOLDEN + np.array([part & 0xFFFFFFFFFFFFFFFF], np.uint64) + _GOLDEN)
    return key


def uniform(key: np.ndarray, index: np.ndarray) -> np.ndarray:
    """[n] float64 in [0, 1): one draw for each index [n]."""
    bits = mix(key + index.astype(np.uint64) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(key: np.ndarray, count: int) -> np.ndarray:
    """A pseudo-random order [count] of 0 .. count-1."""
    return np.argsort(mix(key + np.arange(count, dtype=np.uint64) * _GOLDEN), kind="stable")


class KeyedPermutation:
    """A pseudo-random bijection of 0 .. count-1 that needs no memory and can be inverted.

    A balanced Feistel network on the smallest even number of bits (at least 2) that holds count-1; a value that falls
    outside walks on along its cycle until it is inside (at most a few steps on average, as the domain is at most 4 *
    count).
    """

    def __init__(self, count: int, key: np.ndarray) -> None:
        self.count = count
        self._half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
        self._low = (np.uint64(1) << self._half) - np.uint64(1)
        self._keys = [mix(key + np.array([index + 1], np.uint64) * _GOLDEN) for index in range(_ROUNDS)]

    def forward(self, index: np.ndarray) -> np.ndarray:
        """Images [n] int64 of index [n]."""
        return self._walk(index, inverse=False)

    def inverse(self, index: np.ndarray) -> np.ndarray:
        """Preimages [n] int64 of index [n]."""
        return self._walk(index, inverse=True)

    def _walk(self, index: np.ndarray, *, inverse: bool) -> np.ndarray:
        values = self._rounds(index.astype(np.uint64), inverse)
        while (outside := values >= self.count).any():
            values[outside] = self._rounds(values[outside], inverse)
        return values.astype(np.int64)

    def _rounds(self, values: np.ndarray, inverse: bool) -> np.ndarray:
        left, right = values >> self._half, values & self._low
        for key in reversed(self._keys) if inverse else self._keys:
            if inverse:
                left, right = right ^ (mix(left + key) & self._low), left
            else:
                left, right = right, left ^ (mix(right + key) & self._low)
        return (left << self._half) | right


@dataclass(frozen=True)
class Place:
    """A window and the part of the endless order it covers: positions start .. stop-1, counted through all epochs."""

    epoch: int
    window: int
    start: int
    stop: int


class RowOrder:
    """The endless order of one split's rows: position i is a row of epoch i // rows."""

    def __init__(self, rows: int, block_rows: int, window_blocks: int, seed: int, source: int) -> None:
        self.rows = rows
        self.block_rows = block_rows
        self.window_blocks = window_blocks
        self._seed = seed
        self._source = source
        self._blocks = -(-rows // block_rows)
        self.windows = -(-self._blocks // window_blocks)

    def place(self, position: int) -> Place:
        """The window that holds a position."""
        epoch, offset = divmod(position, self.rows)
        full = self.window_blocks * self.block_rows
        # Every block is full except the file's last one: windows after the one that holds it start earlier by the
        # missing rows.
        lacking = self._blocks * self.block_rows - self.rows
        short = int(self._permutation(epoch).inverse(np.array([self._blocks - 1]))[0]) // self.window_blocks
        if offset < short * full:
            window = offset // full
        elif short == self.windows - 1 or offset < (short + 1) * full - lacking:
            window = short
        else:
            window = (offset + lacking) // full
        start = window * full - (lacking if window > short else 0)
        stop = min((window + 1) * full - (lacking if window >= short else 0), self.rows)
        return Place(epoch, window, epoch * self.rows + start, epoch * self.rows + stop)

    def window_rows(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers of a window, ascending [w], and the order [w] in which they are visited."""
        first = window * self.window_blocks
        blocks = np.arange(first, min(first + self.window_blocks, self._blocks))
        starts = np.sort(self._permutation(epoch).forward(blocks)) * self.block_rows
        rows = (starts[:, None] + np.arange(self.block_rows)).ravel()
        rows = rows[rows < self.rows]
        return rows, shuffled(key_of(self._seed, self._source, epoch, window, 2), len(rows))

    def _permutation(self, epoch: int) -> KeyedPermutation:
        return KeyedPermutation(self._blocks, key_of(self._seed, self._source, epoch, 1))
