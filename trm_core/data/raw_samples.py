"""Turns one raw sample of any kind into what the kind's encoder takes, just as the builders' readers would have.

Every function raises `DataError` that says what was expected; the caller adds which sample it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trm_core.data.build.arc import GridPair, parse_grid
from trm_core.data.build.arrays import ArraysEncoder, mask_fault
from trm_core.data.build.digits import MAX_VALUE, SIZE, digit_picture
from trm_core.data.build.encode_arc import ArcEncoder
from trm_core.data.build.encode_images import PictureEncoder
from trm_core.data.build.encode_table import TableEncoder
from trm_core.data.build.encoders import Encoder
from trm_core.data.build.forest import is_forest
from trm_core.data.build.images import scaled
from trm_core.data.build.phrases import PhraseEncoder
from trm_core.data.build.pictures import ImageFile
from trm_core.data.build.recorded import Spec
from trm_core.data.build.tables import is_missing, to_number
from trm_core.errors import DataError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_MAX_SIDE = 1 << 16


@dataclass(frozen=True)
class SampleSettings:
    """What the readers of images did: resize picture files to `image_size`, divide numbers by `scale`; `whole`: the
    source's pixels were integers other than uint8.
    """

    image_size: int | None = None
    scale: float | None = None
    whole: bool = False


def sample_settings(kind: str, encoder: Encoder, spec: Spec) -> SampleSettings:
    """The settings in `spec`, checked against the encoder. Raises `DataError` for a kind that is unknown or does not
    fit.
    """
    if kind not in _KINDS:
        raise DataError(f"the kind {kind!r:.80} is not known; there are {', '.join(_KINDS)}", hint="upgrade trm")
    if not isinstance(encoder, _KINDS[kind][0]):
        raise DataError(f"the encoder {encoder.name} is not one of {kind}")
    settings = SampleSettings()
    if kind == "images":
        size, scale = spec.whole_or_none("image_size", _MAX_SIDE), spec.number_or_none("scale")
        settings = SampleSettings(size, scale, spec.yes("whole"))
    spec.close()
    if isinstance(encoder, PictureEncoder):
        sides = (encoder.lattice.height, encoder.lattice.width)
        if settings.image_size is not None and sides != (settings.image_size, settings.image_size):
            raise DataError(f"{spec.what}: image_size {settings.image_size} is not the encoder's {sides}")
        if kind == "digits" and (*sides, encoder.channels) != (SIZE, SIZE, 1):
            raise DataError(f"the digits are {SIZE} x {SIZE}, the encoder takes {sides}")
    return settings


def content_of(kind: str, encoder: Encoder, settings: SampleSettings, sample: Any) -> Any:
    """The content of `sample` for `encoder.encode`; for the forms of a sample see `RecordedEncoder.encode`."""
    return _KINDS[kind][1](encoder, settings, sample)


def _text(encoder: Encoder, settings: SampleSettings, sample: Any) -> str:
    if isinstance(sample, Mapping):
        raise DataError(
            f"expected a text, got a row with the fields {', '.join(map(str, sample))}"[:200],
            hint="say which of them is the text: trm predict --column NAME",
        )
    if not isinstance(sample, str):
        raise _expected("a text (str)", sample)
    return _sound(sample)


def _sound(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError("holds half of a surrogate pair, which is not text") from None
    return text


def _image(encoder: Any, settings: SampleSettings, sample: Any) -> np.ndarray:
    shape = (encoder.lattice.height, encoder.lattice.width, encoder.channels)
    size = f"{shape[0]} x {shape[1]} with {shape[2]} channel(s)"
    if isinstance(sample, str | Path):
        if encoder.channels not in _MODES:
            raise DataError(f"is a picture file, but the source's arrays had {encoder.channels} channels")
        pixels = ImageFile(Path(sample), _MODES[encoder.channels], settings.image_size).load()
    elif isinstance(sample, np.ndarray) and sample.dtype.kind in "iuf":
        pixels = _pixels(sample, settings.scale, settings.whole)
    else:
        raise _expected(f"an array of numbers of {size}, or the path of a picture file", sample)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.shape != shape:
        raise DataError(f"has shape {list(pixels.shape)}; expected a picture of {size}")
    return pixels


def _pixels(sample: np.ndarray, scale: float | None, whole: bool) -> np.ndarray:
    """uint8, or float32 in [0, 1]."""
    if sample.dtype.kind == "f":
        if not (np.isfinite(sample).all() and (sample >= 0).all() and (sample <= 1).all()):
            divided = "" if scale is None else f" (those of the source were divided by {scale:g})"
            raise DataError(f"holds pixels outside 0 to 1{divided}")
        return sample.astype(np.float32)
    if sample.dtype.kind == "i" and (sample < 0).any():
        raise DataError("holds pixels below 0")
    if whole and scale is not None:
        return scaled(sample, scale)
    if sample.dtype != np.uint8:
        raise DataError(f"has dtype {sample.dtype}; expected uint8, or floating point from 0 to 1")
    return sample


def _digit(encoder: Encoder, settings: SampleSettings, sample: Any) -> np.ndarray:
    try:
        image = np.asarray(sample) if isinstance(sample, np.ndarray | list) else None
    except ValueError:  # rows of different lengths
        image = None
    if image is None or image.shape != (SIZE, SIZE) or image.dtype.kind not in "iuf":
        raise _expected(f"an array [{SIZE}, {SIZE}] of numbers from 0 to {MAX_VALUE:g}", sample)
    if not ((image >= 0) & (image <= MAX_VALUE)).all():
        raise DataError(f"holds numbers outside 0 to {MAX_VALUE:g}")
    return digit_picture(image.astype(np.float32))


def _arc(encoder: Encoder, settings: SampleSettings, sample: Any) -> GridPair:
    if not isinstance(sample, Mapping) or "input" not in sample:
        raise _expected('a mapping {"input": grid, "output": grid or None}', sample)
    output = sample.get("output")
    return GridPair(
        parse_grid(_rows(sample["input"]), "input"), None if output is None else parse_grid(_rows(output), "output")
    )


def _rows(grid: Any) -> Any:
    return grid.tolist() if isinstance(grid, np.ndarray) else grid


def _table(encoder: TableEncoder, settings: SampleSettings, sample: Any) -> tuple[str, ...]:
    names = [column.name for column in encoder.columns]
    needed = {number for group in encoder.groups for number in group.columns}
    if isinstance(sample, np.ndarray) and sample.ndim == 1:
        sample = sample.tolist()
    if isinstance(sample, Mapping):
        if missing := [names[number] for number in sorted(needed) if names[number] not in sample]:
            raise DataError(
                f"has no column {missing[0]!r}; expected {', '.join(names[n] for n in sorted(needed))}",
                hint="give None (in JSON null) where a value is missing",
            )
        values = [sample.get(name) for name in names]
    elif isinstance(sample, Sequence) and not isinstance(sample, str | bytes):
        if len(sample) != len(names):
            raise DataError(f"has {len(sample)} values; expected {len(names)}: {', '.join(names)}")
        values = list(sample)
    else:
        raise _expected("a mapping of column names to values, or a sequence of values", sample)
    return tuple(_cell(value, encoder, number) if number in needed else "" for number, value in enumerate(values))


def _cell(value: Any, encoder: TableEncoder, number: int) -> str:
    """The value as a cell of a table file would spell it."""
    column = encoder.columns[number]
    value = value.item() if isinstance(value, np.generic) else value
    if value is None:
        return ""
    if isinstance(value, bool):
        cell = encoder.truth(number, value)
    elif isinstance(value, int | float):
        cell = str(value)
    elif isinstance(value, str):
        cell = _sound(value).strip()
    else:
        raise DataError(f"column {column.name!r}: expected a text or a number, got {type(value).__name__}")
    if column.numeric and not is_missing(cell):
        found = to_number(cell)
        if found is None or not math.isfinite(found):
            raise DataError(f"column {column.name!r}: expected a number, got {cell!r:.80}")
    return cell


def _arrays(encoder: Any, settings: SampleSettings, sample: Any) -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = encoder.shapes
    text = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    if not isinstance(sample, Mapping):
        raise _expected(f"a mapping with {text}", sample)
    content: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        if name not in sample:
            raise DataError(f"has no {name}; expected {text}")
        try:
            array = np.asarray(sample[name])
        except ValueError:  # rows of different lengths
            raise DataError(f"{name} is not an array; expected {text}") from None
        if array.shape != shape or array.dtype.kind not in {"parents": "iu", "mask": "biu"}.get(name, "iuf"):
            raise DataError(f"{name} is {array.dtype} {list(array.shape)}; expected numbers {list(shape)}")
        if not np.isfinite(array).all():
            raise DataError(f"{name} holds NaN or infinity")
        if name == "parents" and not is_forest(array):
            raise DataError(f"parents are {array.tolist()}: not a hierarchy of capsules")
        content[name] = array
    if (fault := mask_fault(content)) is not None:
        raise DataError(f"its mask {fault}")
    return content


def _expected(what: str, sample: Any) -> DataError:
    got = f"an array {sample.dtype} {list(sample.shape)}" if isinstance(sample, np.ndarray) else type(sample).__name__
    return DataError(f"expected {what}, got {got}")


_KINDS: dict[str, tuple[type, Callable[[Any, SampleSettings, Any], Any]]] = {
    "text": (PhraseEncoder, _text),
    "images": (PictureEncoder, _image),
    "digits": (PictureEncoder, _digit),
    "arc": (ArcEncoder, _arc),
    "table": (TableEncoder, _table),
    "arrays": (ArraysEncoder, _arrays),
    "legacy": (ArraysEncoder, _arrays),
}
