"""safetensors files with a lying header, and pickles in their place."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from pathlib import Path
from random import Random
from typing import Any

import torch
from hostile_json import hostile_json

_DTYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "I16",
    "I8",
    "U8",
    "BOOL",
    "F8_E4M3",
    "C64",
    "U64",
    "F4",
    "F00",
    "",
)
_LENGTHS = (0, 1, 2**31, 2**32 + 8, 100_000_000, 100_000_001, 2**63 - 1, 2**63, 2**64 - 1)
_NUMBERS = (-1, 0, 1, 2, 2**31, 2**40, 2**62, 2**63, 2**64, 1.5, "1", None)


class _Payload:
    """Creates `marker` when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def pickled(random: Random, marker: Path) -> tuple[str, bytes]:
    """A pickle that creates `marker` when it is loaded: plain, or as saved by torch."""
    if random.random() < 0.5:
        return "pickle", pickle.dumps(_Payload(marker))
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2), "payload": _Payload(marker)}, buffer)
    return "torch pickle", buffer.getvalue()


def hostile_tensors(random: Random, data: bytes) -> tuple[str, bytes]:
    """What was done, and the file with another header."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length].decode(), data[8 + length :]
    kind = random.choice(("length", "json", "dtype", "shape", "offsets", "exchange", "values", "surplus"))
    if kind == "length":
        lie = random.choice((*_LENGTHS, length - 1, length + 1, len(data), len(data) - 8))
        return f"header of {lie} bytes", struct.pack("<Q", lie) + data[8:]
    if kind == "json":
        what, header = hostile_json(random, header)
        return f"header: {what}", _joined(header, body)
    tensors = json.loads(header)
    names = [name for name in tensors if name != "__metadata__"]
    name = random.choice(names)
    entry = tensors[name]
    if kind == "dtype":
        entry["dtype"] = random.choice(_DTYPES)
    elif kind == "shape":
        entry["shape"] = random.choice(
            (
                entry["shape"][::-1],
                [*entry["shape"], 1],
                [1, *entry["shape"]],
                [],
                [0],
                _numbers(random),
                [2**32, 2**32],
            )
        )
    elif kind == "offsets":
        entry["data_offsets"] = random.choice(
            (entry["data_offsets"][::-1], _numbers(random), [0, len(body)], [len(body), len(body) + 8], [0, 0])
        )
    elif kind == "exchange":
        other = random.choice(names)
        tensors[name], tensors[other] = tensors[other], tensors[name]
        name = f"{name} and {other}"
    elif kind == "surplus":
        del tensors[name]
        tensors[random.choice((f"{name}x", "", "../x", name.rpartition(".")[2], "\0"))] = entry
    else:
        body = _with_values(random, body)
    return f"{kind} of {name}", _joined(json.dumps(tensors), body)


def _joined(header: str, body: bytes) -> bytes:
    raw = header.encode(errors="replace")
    return struct.pack("<Q", len(raw)) + raw + body


def _numbers(random: Random) -> list[Any]:
    return [random.choice(_NUMBERS) for _ in range(random.randint(1, 3))]


def _with_values(random: Random, body: bytes) -> bytes:
    """Some numbers become NaN, infinity, huge integers or zero."""
    changed = bytearray(body)
    for _ in range(random.randint(1, 200)):
        place = random.randrange(max(1, len(body) // 8)) * 8
        changed[place : place + 8] = random.choice(
            (b"\xff" * 8, struct.pack("<ff", float("nan"), float("inf")), struct.pack("<q", 2**62), bytes(8))
        )
    return bytes(changed[: len(body)])
