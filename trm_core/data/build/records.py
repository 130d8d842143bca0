"""What every reader hands to the pipeline: samples one at a time, with a digest that tells duplicates apart.

A reader opens one source of one kind and can be iterated any number of times, always in the same order; nothing of a
large source is kept between samples. The pipeline (`trm_core.data.build.pipeline`) scans it once for digests and
labels, once for a bounded sample to fit the encoder on, and once to encode.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

_WHOLE = re.compile(r"([-+]?\d+)\.0+")
NO_LABELS = "none"  # given as the name of the label: the source has no labels, whatever it holds
Log = Callable[[str], None]
Progress = Callable[[str, int, int], None]


def silent(message: str) -> None:
    """The `Log` of callers that gave none."""


@dataclass(frozen=True, slots=True)
class Record:
    """One sample of a source, before it is encoded.

    `content` is what the kind's encoder takes; `digest` is equal for samples that count as duplicates (0 where it was
    not asked for); `label` is a class name, None where there is none; `group` names samples that must share a split
    (the pairs of one ARC task).
    """

    content: Any
    digest: int
    label: str | None = None
    group: str | None = None


class Reader(Protocol):
    """One source, opened. `records` yields its samples in source order, every time the same."""

    path: str
    has_labels: bool

    def records(self, *, digests: bool) -> Iterator[Record]: ...


def label_among(there: Collection[str], told: str | None, usual: Sequence[str]) -> str | None:
    """The name of the labels: the one in `told`, else a usual one that is there. None: there are to be no labels."""
    if told is None:
        return next(iter(called(there, usual)), None)
    return None if told == NO_LABELS and told not in there else told


def called(there: Collection[str], usual: Sequence[str]) -> list[str]:
    """Those of the names that are usual ones, in the order of `usual`; if none matches exactly, ignoring case (Species,
    LABEL). The case of a single letter counts, for Y is a coordinate where y is a target.
    """
    if exact := [name for name in usual if name in there]:
        return exact
    return [name for one in usual if len(one) > 1 for name in there if name.casefold() == one]


def class_text(text: str) -> str:
    """The class name of a label that is written as text: a whole number has no decimal point, however it was saved."""
    text = text.strip()
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def digest_bytes(*parts: bytes) -> int:
    """64-bit content digest as a Python int that fits uint64."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return int.from_bytes(state.digest(), "little")


def digest_array(array: np.ndarray) -> int:
    """Digest of an array's shape, dtype and values."""
    return digest_bytes(str((array.shape, array.dtype.str)).encode(), np.ascontiguousarray(array).tobytes())


def label_order(names: set[str]) -> list[str]:
    """Class names in the order of their ids: by number where all are integers, else alphabetical."""
    try:
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)


def base_name(path: str) -> str:
    """Short name of a source for messages and file names."""
    return Path(path).name or path
