"""Read what a file says an encoder was made from: JSON settings and arrays, each checked before it is used.

Both may come from an untrusted file. Every method raises `DataError` for a value of another kind or size than a builder
writes; the caller adds the name of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from trm_core.errors import DataError

MAX_VALUES = 1 << 26  # of a sample or a matrix of a layout: far above any that is built, small enough for memory
_MAX_TEXT = 4096
_MAX_ITEMS = 65_536
_HINT_NEWER = "it may be of a newer version: upgrade trm, or build the file again from its source"


class Spec:
    """A JSON object, taken apart key by key; `close` refuses keys that nobody asked for."""

    def __init__(self, values: Any, what: str) -> None:
        if not isinstance(values, Mapping):
            raise DataError(f"{what} is not a JSON object")
        self.what = what
        self._values: Mapping[str, Any] = values
        self._used: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def whole(self, key: str, least: int = 1, most: int = MAX_VALUES) -> int:
        """A whole number from `least` to `most`."""
        value = self._take(key)
        if type(value) is not int or not least <= value <= most:
            raise self._wrong(key, value, f"a whole number from {least} to {most}")
        return value

    def yes(self, key: str) -> bool:
        value = self._take(key)
        if type(value) is not bool:
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, choices: tuple[str, ...] | None = None) -> str:
        value = self._take(key)
        if not isinstance(value, str) or len(value) > _MAX_TEXT or "\0" in value:
            raise self._wrong(key, value, "a text")
        if choices is not None and value not in choices:
            raise self._wrong(key, value, " or ".join(choices))
        return value

    def number_or_none(self, key: str) -> float | None:
        """A finite number above 0, or null."""
        value = self._take(key)
        if value is None:
            return None
        if type(value) not in (int, float) or not 0 < value <= np.finfo(np.float64).max:
            raise self._wrong(key, value, "a number above 0, or null")
        return float(value)

    def whole_or_none(self, key: str, most: int) -> int | None:
        """A whole number from 1 to `most`, or null."""
        if self._take(key) is None:
            return None
        return self.whole(key, 1, most)

    def wholes(self, key: str, least: int = 1, most: int = MAX_VALUES) -> tuple[int, ...]:
        """A list of whole numbers from `least` to `most`; it may be empty."""
        value = self.items(key)
        if not all(type(each) is int and least <= each <= most for each in value):
            raise self._wrong(key, value, f"a list of whole numbers from {least} to {most}")
        return tuple(value)

    def pair(self, key: str) -> tuple[int, int]:
        value = self.wholes(key)
        if len(value) != 2:
            raise self._wrong(key, value, "two whole numbers")
        return value[0], value[1]

    def texts(self, key: str) -> list[str]:
        value = self.items(key)
        if not all(isinstance(each, str) and len(each) <= _MAX_TEXT for each in value):
            raise self._wrong(key, value, "a list of texts")
        return value

    def items(self, key: str) -> list[Any]:
        value = self._take(key)
        if not isinstance(value, list) or len(value) > _MAX_ITEMS:
            raise self._wrong(key, value, "a list")
        return value

    def part(self, key: str) -> Spec:
        """The object under `key`; whoever reads it closes it."""
        return Spec(self._take(key), f"{self.what}: {key}")

    def close(self) -> None:
        """Raise `DataError` for a key that was not read: it would be ignored where it should matter."""
        strange = sorted(set(self._values) - self._used)
        if strange:
            raise DataError(f"{self.what} has the unknown setting {strange[0]!r:.80}", hint=_HINT_NEWER)

    def _take(self, key: str) -> Any:
        if key not in self._values:
            raise DataError(f"{self.what} has no {key}")
        self._used.add(key)
        return self._values[key]

    def _wrong(self, key: str, value: Any, expected: str) -> DataError:
        return DataError(f"{self.what}: {key} is {value!r:.80}; expected {expected}")


class Arrays:
    """An encoder's arrays by name, taken one by one."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays
        self._used: set[str] = set()

    def take(self, name: str, dtype: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """The array, finite and of this dtype and shape; None stands for any size of at least 1."""
        array = self._get(name)
        if shape == () and array.shape == (1,):  # a single number is stored as [1], because HDF5 checksums only arrays
            array = array.reshape(())
        fits = len(array.shape) == len(shape) and all(
            size == asked if asked is not None else size >= 1 for size, asked in zip(array.shape, shape, strict=True)
        )
        if array.dtype.name != dtype or not fits:
            text = ", ".join("any" if asked is None else str(asked) for asked in shape)
            raise DataError(f"array {name} is {array.dtype} {list(array.shape)}; expected {dtype} [{text}]")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"array {name} holds NaN or infinity")
        return array

    def text(self, name: str) -> str:
        """UTF-8 bytes kept as uint8 [bytes]."""
        try:
            return self.take(name, "uint8", (None,)).tobytes().decode()
        except UnicodeDecodeError:
            raise DataError(f"array {name} is not UTF-8 text") from None

    def close(self) -> None:
        strange = sorted(set(self._arrays) - self._used)
        if strange:
            raise DataError(f"there is an array {strange[0]!r:.80} that this encoder does not have", hint=_HINT_NEWER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()

    def _get(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            raise DataError(f"the array {name} is missing")
        self._used.add(name)
        return self._arrays[name]


def as_bytes(text: str) -> np.ndarray:
    """uint8 [bytes]: a plain array needs no pickle."""
    return np.frombuffer(text.encode(), dtype=np.uint8)
