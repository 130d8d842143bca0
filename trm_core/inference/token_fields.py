"""The puzzle arrays that a caller passes in, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm_core.errors import DataError
from trm_core.inference.trained import Trained

NAMES = ("tokens", "puzzles")


def checked_tokens(
    fields: Mapping[str, Any], trained: Trained, first: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """tokens [n, S] and identifiers [n] (the blank one where none are given). Raises DataError that names the row
    (counted from `first`) and what was expected.
    """
    shape = trained.model.data
    unknown = [name for name, value in fields.items() if value is not None and name not in NAMES]
    if unknown or fields.get("tokens") is None:
        what = f"no field {unknown[0]!r} in a model of puzzles" if unknown else "no tokens"
        raise DataError(what, hint=f"give tokens [n, {shape.num_capsules}] and, if you like, puzzles [n]")
    tokens = _whole_numbers("tokens", fields["tokens"], (None, shape.num_capsules))
    bad = (tokens < 0) | (tokens >= shape.vocab_size)
    if bad.any():
        row, place = np.argwhere(bad)[0]
        raise DataError(
            f"tokens: row {first + row}, position {place}: {tokens[row, place]} is not in 0..{shape.vocab_size - 1}"
        )
    if fields.get("puzzles") is None:
        blank = 0 if trained.puzzles is None else trained.puzzles.blank
        return tokens, np.full(len(tokens), blank, np.int64)
    puzzles = _whole_numbers("puzzles", fields["puzzles"], (len(tokens),))
    bad = (puzzles < 0) | (puzzles >= shape.num_puzzles)
    if bad.any() and trained.config.arch.puzzle_emb_ndim:  # a model without embeddings ignores them
        row = int(bad.argmax())
        raise DataError(
            f"puzzles: row {first + row}: {puzzles[row]} is not in 0..{shape.num_puzzles - 1}, the identifiers that "
            "the model has an embedding for",
            hint="leave puzzles out for those that it has not seen",
        )
    return tokens, puzzles


def _whole_numbers(name: str, values: Any, shape: tuple[int | None, ...]) -> NDArray[np.int64]:
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"{name}: {error}") from error
    if array.ndim != len(shape) or any(want not in (None, size) for want, size in zip(shape, array.shape, strict=True)):
        wanted = ["n" if size is None else size for size in shape]
        raise DataError(f"{name} have shape {list(array.shape)}, the model takes {wanted}".replace("'", ""))
    if array.dtype.kind not in "iu":
        raise DataError(f"{name} are {array.dtype}, expected whole numbers")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise DataError(f"{name}: {array.max()} is too large")
    return array.astype(np.int64)
