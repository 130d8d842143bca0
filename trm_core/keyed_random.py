"""Random numbers as a pure function of (seed, step, row, purpose).

Exploration, prices and random openings are keyed by the *global* row and step, so they are the same for any number of
processes and after any resume, and no generator state has to be saved. The mixing function is the finaliser of
splitmix64 (Steele, Lea and Flood, 2014), in wrapping int64 arithmetic that gives the same bits on every device.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache

import torch
from torch import Tensor


class Purpose(IntEnum):
    """What a draw is for; two purposes never share numbers."""

    EXPLORE = 1
    EXPLORE_ACTION = 2
    EXPLORE_CAPSULE = 3
    SELECT = 4
    PRICE = 5
    OPEN_EPISODE = 6
    OPEN_RATE = 7
    OPEN_CAPSULE = 8
    REPLAY = 9
    HOLD_EPISODE = 10
    HOLD_STEPS = 11
    REVIVE_CONCEPT = 12


_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_ALL_BITS = (1 << 64) - 1


def _wrapped(x: int) -> int:
    """x reduced to a signed 64-bit integer, as an int64 tensor would wrap it."""
    return ((x + (1 << 63)) & _ALL_BITS) - (1 << 63)


def _mixed(x: int) -> int:
    """`_mix` of one number, on the host: copying it to a GPU as a tensor would wait for all of its queued work."""
    x &= _ALL_BITS
    x = (x ^ (x >> 30)) * (_MIX_1 & _ALL_BITS) & _ALL_BITS
    x = (x ^ (x >> 27)) * (_MIX_2 & _ALL_BITS) & _ALL_BITS
    return _wrapped(x ^ (x >> 31))


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # int64's >> copies the sign bit; the mask makes it a logical shift.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def keyed_uniform(seed: int, step: int | Tensor, purpose: Purpose, rows: Tensor, width: int | None = None) -> Tensor:
    """Uniform draws in [0, 1) for each row.

    step: one for all rows, or [B] int64. rows: [B] int64, global row numbers. Returns float32 [B], or [B, width] if
    `width` is given.
    """
    of_purpose = _mixed(seed * _GOLDEN + int(purpose))
    if isinstance(step, int):
        bits = _mix(rows * _GOLDEN + _mixed(of_purpose + step * _GOLDEN))
    else:
        bits = _mix(rows * _GOLDEN + _mix(step * _GOLDEN + of_purpose))
    if width is not None:
        lanes = torch.arange(1, width + 1, dtype=torch.int64, device=rows.device)
        bits = _mix(bits[:, None] + lanes[None, :] * _GOLDEN)
    return _uniform(bits)


def keyed_uniforms(seed: int, step: int, purposes: tuple[Purpose, ...], rows: Tensor) -> Tensor:
    """[len(purposes), B]: the draws of `keyed_uniform` for each purpose, with no more operations than for one."""
    keys = _mix(_keys(seed, purposes, rows.device) + _wrapped(step * _GOLDEN))
    return _uniform(_mix(rows * _GOLDEN + keys[:, None]))


@cache  # otherwise each step would copy them to the device, and wait for all of its queued work
def _keys(seed: int, purposes: tuple[Purpose, ...], device: torch.device) -> Tensor:
    return torch.tensor([_mixed(seed * _GOLDEN + int(purpose)) for purpose in purposes], device=device)


def _uniform(bits: Tensor) -> Tensor:
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24
