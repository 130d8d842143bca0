"""The vocabulary of a capsule file: its fields with their shapes and dtypes, its splits, its format mark.

Read by the store (what a file may hold), the builders (what to write) and the loader (what a batch consists of).

Symbols: N samples of a split, k capsules per sample, m children per capsule, D embedding width, R checksum width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

FORMAT = "trm-capsules"
SCHEMA_VERSION = 2  # the newest version that is read; the writer decides which one a file gets
SPLITS = ("train", "validation", "test")
IGNORE_LABEL = -100
CONTROL_SYMBOLS = 4  # ids 0-3 of the token vocabulary; concept c is id c + 4
PRICES = "prices"
ENCODERS = "encoders"
CONCEPTS_SHA256 = "concepts_sha256"  # manifest key: hash of the centres that a file's concept ids refer to


@dataclass(frozen=True)
class Field:
    """One dataset of a split. `axes` are the symbols of its dimensions, one tuple per shape allowed."""

    name: str
    axes: tuple[tuple[str, ...], ...]
    dtypes: tuple[str, ...]
    meaning: str

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(len(axes) for axes in self.axes)

    @property
    def is_embedding(self) -> bool:
        """True for floating-point fields, whose values must be finite."""
        return self.dtypes[0].startswith("float")

    def axes_of_rank(self, rank: int) -> tuple[str, ...]:
        """The symbols of the dimensions for a dataset of this rank; KeyError if the rank is not allowed."""
        for axes in self.axes:
            if len(axes) == rank:
                return axes
        raise KeyError(rank)

    def shape_text(self) -> str:
        """The allowed shapes for messages, e.g. "[N, k, D]"."""
        return " or ".join(f"[{', '.join(axes)}]" for axes in self.axes)


_FLOATS = ("float16", "float32")

_ALL = (
    Field("sketches", (("N", "k", "D"),), _FLOATS, "coarse view of each capsule, always seen"),
    Field("children", (("N", "k", "m", "D"),), _FLOATS, "the detail that an EXPAND buys"),
    Field("checksums", (("N", "k", "R"),), _FLOATS, "seeded projection of the flattened children"),
    Field("labels", (("N",), ("N", "k")), ("int64",), "task target; -100 is ignored"),
    Field("parents", (("N", "k"),), ("int64",), "index of the parent capsule within the sample; -1 for a root"),
    Field("mask", (("N", "k"),), ("bool",), "true: a real capsule; false: padding"),
    Field("modality", (("N",),), ("int64",), "which source kind the sample comes from"),
    Field("ids", (("N",),), ("int64",), "row number of the sample in its source"),
)

FIELDS: Mapping[str, Field] = MappingProxyType({field.name: field for field in _ALL})
