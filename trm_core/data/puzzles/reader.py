"""A puzzle folder, read in pieces. `open_puzzles` refuses anything else; later reads only move bytes, after checking
that they are still there.

Examples are memory-mapped; the index arrays are held in memory. The sets of a split follow one another: example, puzzle
and group numbers run through all of them.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trm_core.data.fields import IGNORE_LABEL
from trm_core.data.puzzles.checked_files import PuzzleSet, read_manifest, read_metadata, read_names, read_set, refuse
from trm_core.data.puzzles.layout import (
    DATASET,
    EXAMPLE_FIELDS,
    INDEX_FIELDS,
    SPLITS,
    Manifest,
    Metadata,
    array_path,
)
from trm_core.errors import ConfigError, DataError

_SCAN_ROWS = 65536
_HASHED_BYTES = 1 << 20  # of a large array this many bytes are hashed at each of several places
_HASHED_PLACES = 64


def is_puzzle_folder(path: str | Path) -> bool:
    """Whether a path is meant to be a folder of puzzles."""
    return any((Path(path) / split / DATASET).is_file() for split in SPLITS)


def open_puzzles(path: str | Path) -> PuzzleData:
    """Open a puzzle folder: metadata and index arrays are read and checked, examples are mapped.

    Raises DataError that names file and index, with a hint.
    """
    path = Path(path)
    metadata = {split: read_metadata(path / split / DATASET) for split in SPLITS if (path / split / DATASET).is_file()}
    if not metadata:
        raise DataError(
            f"{path}: is not a puzzle folder: it has neither train/{DATASET} nor test/{DATASET}",
            hint="make one with trm build-puzzles, or give the folder that another builder wrote",
        )
    first_split, first = next(iter(metadata.items()))
    for split, other in metadata.items():
        for name in ("seq_len", "vocab_size", "pad_id", "ignore_label_id", "num_puzzle_identifiers"):
            if getattr(first, name) != getattr(other, name):
                refuse(
                    path / split / DATASET,
                    f"{name} is {getattr(other, name)}, and {getattr(first, name)} in {first_split}/{DATASET}",
                )
    sets = {split: [read_set(path, split, name, found) for name in found.sets] for split, found in metadata.items()}
    return PuzzleData(
        path.absolute(), metadata, sets, read_manifest(path, first), read_names(path, first.num_puzzle_identifiers)
    )


class PuzzleData:
    """A folder of puzzles, with the same attributes as a `CapsuleFile`: tokens are the sketches of capsules that have
    nothing to open.
    """

    num_children = dim = checksum_dim = 0
    label_rank = 2
    task = "tokens"
    fields = ("sketches", "labels", "puzzles")

    def __init__(
        self,
        path: Path,
        metadata: dict[str, Metadata],
        sets: dict[str, list[PuzzleSet]],
        about: Manifest | None,
        names: list[str] | None,
    ) -> None:
        first = next(iter(metadata.values()))
        self.path, self.metadata, self.sets = path, metadata, sets
        self.about, self.names = about, names  # names: of identifiers
        self.num_capsules = first.seq_len
        self.num_classes: int | None = first.vocab_size
        self.num_puzzles = first.num_puzzle_identifiers
        self.shift = 0  # what a run adds to the identifiers, all but the blank one
        self.pad_id, self.ignore_label_id = first.pad_id, first.ignore_label_id
        self.blank_identifier_id = first.blank_identifier_id
        self.rows = {split: sum(len(part.inputs) for part in parts) for split, parts in sets.items()}
        self.prices = np.ones(self.num_capsules, np.float32)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What a run records of its data."""
        kind = "tokens" if self.about is None else self.about.kind
        return {"kind": f"puzzles: {kind}", "content_hash": self._fingerprint(), "class_names": None}

    def numbered(self, shift: int) -> PuzzleData:
        """The same folder with `shift` added to its puzzles' numbers."""
        other = copy.copy(self)
        other.shift = shift
        return other

    def name_of(self, number: int) -> str:
        """The name of a puzzle, by the number that `read` gives it. Only where the folder names its identifiers."""
        assert self.names is not None
        return self.names[number if number == self.blank_identifier_id else number - self.shift]

    def has(self, field: str) -> bool:
        """True if the rows have this field."""
        return field in self.fields

    def read(self, split: str, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
        """`sketches` and `labels` [n, S] and `puzzles` [n], int64, for examples of a split by number; labels to ignore
        are -100. Raises DataError if a file has been truncated since it was opened.
        """
        index = np.arange(*rows.indices(self.rows[split])) if isinstance(rows, slice) else np.asarray(rows)
        n, S = len(index), self.num_capsules
        found = {
            "sketches": np.empty((n, S), np.int64),
            "labels": np.empty((n, S), np.int64),
            "puzzles": np.empty(n, np.int64),
        }
        begin = 0
        for part in self.sets[split]:
            here = np.flatnonzero((index >= begin) & (index < begin + len(part.inputs)))
            own = index[here] - begin
            found["sketches"][here] = part.read("inputs", own)
            found["labels"][here] = part.read("labels", own)
            found["puzzles"][here] = part.identifiers[own]
            begin += len(part.inputs)
        found["puzzles"][found["puzzles"] != self.blank_identifier_id] += self.shift
        if self.ignore_label_id is not None:
            found["labels"][found["labels"] == self.ignore_label_id] = IGNORE_LABEL
        return found

    def rows_per_epoch(self, split: str) -> float:
        """Examples in an epoch, which visits one puzzle of every group, averaged over the draws."""
        return float(sum(_mean_visit(part) for part in self.sets[split]))

    def require_trainable(self) -> None:
        """Raise DataError if there is nothing to learn from (no labels, or all alike), or if a token is outside the
        vocabulary.
        """
        if not self.rows.get("train"):
            raise DataError(f"{self.path}: has no training puzzles", hint=f"it has {', '.join(self.rows)}")
        low, high = self.require_labels("train")
        if low > high:
            raise DataError(f"{self.path}: every training label is ignored", hint="give the folder with answers")
        if low == high:
            raise DataError(
                f"{self.path}: all training labels are the token {low}, so there is nothing to learn",
                hint="give the folder with answers",
            )

    def require_labels(self, split: str) -> tuple[int, int]:
        """The smallest and largest label of a split, ignored ones left out (the first is larger than the second where
        there are none). Raises DataError for tokens outside the vocabulary.
        """
        low, high = np.iinfo(np.int64).max, np.iinfo(np.int64).min
        for part in self.sets[split]:
            for begin in range(0, len(part.inputs), _SCAN_ROWS):
                inputs, labels = (part.read(name, slice(begin, begin + _SCAN_ROWS)) for name in EXAMPLE_FIELDS)
                self._require_tokens(split, part, "inputs", begin, inputs)
                if self.ignore_label_id is not None:
                    ignored = labels == self.ignore_label_id
                    if ignored.all():
                        continue
                    # Ignored labels need not be tokens.
                    labels = np.where(ignored, labels[~ignored][0], labels)
                self._require_tokens(split, part, "labels", begin, labels)
                low, high = min(low, int(labels.min())), max(high, int(labels.max()))
        return low, high

    def close(self) -> None:
        """Nothing is held open but the mapping."""

    def __repr__(self) -> str:
        return f"PuzzleData({str(self.path)!r}, rows={self.rows}, S={self.num_capsules}, V={self.num_classes})"

    def _require_tokens(self, split: str, part: PuzzleSet, name: str, begin: int, block: np.ndarray) -> None:
        if block.min() >= 0 and block.max() < self.num_classes:
            return
        row, place = np.argwhere((block < 0) | (block >= self.num_classes))[0]
        refuse(
            array_path(self.path, split, part.name, name),
            f"example {begin + row}, position {place}: token {block[row, place]} is not in 0 .. vocab_size - 1 = "
            f"{(self.num_classes or 0) - 1}",
        )

    def _fingerprint(self) -> str:
        """SHA-256 of metadata, indices and examples; of large arrays only some places are read."""
        digest = hashlib.sha256()
        for split, parts in self.sets.items():
            digest.update(self.metadata[split].model_dump_json().encode())
            for part in parts:
                for name in INDEX_FIELDS:
                    digest.update(np.ascontiguousarray(getattr(part, name)).tobytes())
                for name in EXAMPLE_FIELDS:
                    for rows in _places(getattr(part, name)):
                        digest.update(np.ascontiguousarray(part.read(name, rows)).tobytes())
        return digest.hexdigest()


def require_mergeable(folders: Sequence[PuzzleData]) -> None:
    """Raise ConfigError if the folders differ in sequence length, vocabulary or special ids."""
    first = folders[0]
    for other in folders:
        for name in ("num_capsules", "num_classes", "pad_id", "ignore_label_id", "blank_identifier_id"):
            mine, theirs = getattr(first, name), getattr(other, name)
            if mine != theirs:
                what = {"num_capsules": "seq_len", "num_classes": "vocab_size"}.get(name, name)
                raise ConfigError(
                    f"{other.path}: {what} is {theirs}, and {mine} in {first.path}: these cannot be merged",
                    hint="build them with the same vocabulary and length",
                )


def _mean_visit(part: PuzzleSet) -> float:
    """Examples in a visit of every group, averaged over the draws."""
    sizes, copies = np.diff(part.puzzle_indices), np.diff(part.group_indices)
    return float((sizes / np.repeat(copies, copies)).sum())


def _places(array: np.ndarray) -> Iterator[slice]:
    """All rows of a small array, or rows at some places of a large one."""
    rows = max(1, _HASHED_BYTES // max(1, array[:1].nbytes))
    if len(array) <= rows * _HASHED_PLACES:
        yield slice(0, len(array))
        return
    for start in np.linspace(0, len(array) - rows, _HASHED_PLACES).astype(int):
        yield slice(start, start + rows)
