"""JSON of users' data files. Python's parser takes the last of two values with one key in silence."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from trm_core.errors import DataError


class _TwiceError(ValueError):
    """An object has the key twice."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def parsed(text: str, where: str) -> Any:
    """The value of a JSON text. Raises ValueError or RecursionError as `json.loads` does, and DataError that says
    `where` for an object with one key twice.
    """
    try:
        return _DECODER.decode(text)
    except _TwiceError as twice:
        raise DataError(
            f"{where}: an object has the key {twice.key[:60]!r} twice", hint="remove or rename one of the two"
        ) from None


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        often = Counter(key for key, _ in pairs)
        raise _TwiceError(next(key for key, count in often.items() if count > 1))
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_without_twins)  # made once: to make one takes as long as a short line
