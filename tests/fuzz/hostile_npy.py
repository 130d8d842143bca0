"""npy files with a lying header, objects and archives in their place, and sound files with other values."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from random import Random

import numpy as np
from hostile_tensors import pickled

MAGIC = b"\x93NUMPY"
_DTYPES = ("|u1", "<i4", ">i8", "<f4", "|b1", "|O", "|V0", "<M8[s]", "<U3", "i0", "", "[('a', '<i4')]")
_SHAPES = ("()", "(0,)", "(1,)", "(-1, 6)", f"({2**40}, 6)", f"({2**70},)", f"({2**40}, {2**40})", "(True, 6)", "6",
           "(1,) * 70", "None", "(24, 6, 1)", "(6, 24)")  # fmt: skip
_TEXTS = ("(" * 9000, "[" * 60_000, "{'descr': '''", "__import__('os').mkdir('executed')", "\x00", "", "{}", "{1: 2}")
_KINDS = ("header", "header", "text", "values", "values", "rows", "dtype", "pickle", "archive", "length")
_NUMBERS = (0, 1, 2, 4, 5, 127, 255, 2**31, 2**63 - 1, -1, -100, -(2**63))


def hostile_npy(random: Random, data: bytes, marker: Path) -> tuple[str, bytes]:
    """What was done, and other bytes. `data`: a sound file; `marker`: created if code is executed that must not be."""
    kind = random.choice(
        ("header", "header", "text", "values", "values", "rows", "dtype", "pickle", "archive", "length")
    )
    array = np.load(io.BytesIO(data))
    if kind == "header":
        dtype, shape = random.choice((array.dtype.str, *_DTYPES)), random.choice((str(array.shape), *_SHAPES))
        name = dtype if dtype.startswith("[") else repr(dtype)
        return f"{dtype} {shape}", framed(f"{{'descr': {name}, 'fortran_order': False, 'shape': {shape}}}\n") + body(
            data
        )
    if kind == "text":
        text = random.choice(_TEXTS)
        return f"header {text[:20]!r}", framed(text, random.choice((1, 2, 3))) + body(data)
    if kind == "length":
        size = random.choice((0, 2**16, 2**32 - 1))
        return f"header of {size} bytes", MAGIC + b"\x02\x00" + struct.pack("<I", size) + data[10:]
    if kind == "pickle":
        return pickled(random, marker)
    if kind == "archive":
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as files:
            files.writestr("array.npy", data)
        return "an archive", archive.getvalue()
    if kind == "values":
        array = array.astype(np.int64)
        number = random.choice(_NUMBERS)
        array.flat[random.randrange(array.size)] = number
        return f"a value {number}", saved(array)
    if kind == "rows":
        return "fewer rows", saved(array[: random.randrange(len(array))])
    dtype = random.choice(("float32", "bool", "uint64", "object", "<U2", "complex64"))
    return f"as {dtype}", saved(array.astype(dtype))


def framed(header: str, version: int = 1) -> bytes:
    text = header.encode("latin1")
    size = struct.pack("<H", min(len(text), 65535)) if version == 1 else struct.pack("<I", len(text))
    return MAGIC + bytes([version, 0]) + size + text


def body(data: bytes) -> bytes:
    return data[10 + int.from_bytes(data[8:10], "little") :]


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()
