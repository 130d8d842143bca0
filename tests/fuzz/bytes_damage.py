"""Damage that needs no knowledge of a file's format: a faulty disk, an incomplete copy, a cosmic ray."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

Damage = Callable[[Random, bytes], bytes]


def truncated(random: Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data))]


def emptied(random: Random, data: bytes) -> bytes:
    return b""


def bit_flipped(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def bytes_replaced(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.randint(1, 8)):
        place = random.randrange(len(data))
        changed[place] ^= random.randint(1, 255)
    return bytes(changed)


def zeroed(random: Random, data: bytes) -> bytes:
    """A block that was never written, as a file system leaves after a crash."""
    start = random.randrange(len(data))
    end = min(len(data), start + random.choice((1, 16, 512, 4096)))
    return data[:start] + bytes(end - start) + data[end:]


def inserted(random: Random, data: bytes) -> bytes:
    place = random.randrange(len(data) + 1)
    return data[:place] + random.randbytes(random.choice((1, 8, 300))) + data[place:]


def repeated(random: Random, data: bytes) -> bytes:
    start = random.randrange(len(data))
    end = min(len(data), start + random.choice((1, 64, 4096)))
    return data[:end] + data[start:end] + data[end:]


def appended(random: Random, data: bytes) -> bytes:
    return data + random.randbytes(random.choice((1, 8, 300)))


DAMAGES: tuple[Damage, ...] = (
    truncated,
    truncated,
    emptied,
    bit_flipped,
    bit_flipped,
    bytes_replaced,
    bytes_replaced,
    zeroed,
    inserted,
    repeated,
    appended,
)


def damaged(random: Random, data: bytes) -> tuple[str, bytes]:
    """What was done, and bytes that differ from `data`."""
    while True:
        damage = random.choice(DAMAGES)
        changed = damage(random, data) if data else random.randbytes(8)
        if changed != data:
            return damage.__name__, changed
