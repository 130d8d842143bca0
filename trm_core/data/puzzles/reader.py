"""A puzzle folder, read in pieces. `open_puzzles` is where every refusal happens; reading later moves bytes only.

Examples are memory-mapped; the index arrays are held. The sets of a split are one after the other: example, puzzle and
group numbers count through all of them.
"""

from __future__ import annotations

import hashlib
import json
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from pydantic import ValidationError

from trm_core.data.fields import IGNORE_LABEL
from trm_core.data.puzzles.layout import (
    BLANK,
    DATASET,
    EXAMPLE_FIELDS,
    IDENTIFIERS,
    INDEX_FIELDS,
    MANIFEST,
    SPLITS,
    Manifest,
    Metadata,
    array_path,
)
from trm_core.errors import DataError

_MOST_JSON_BYTES = 1 << 30
_SCAN_ROWS = 65536
_HASHED_BYTES = 1 << 20  # of an array whose bytes are many: this many at each of some places
_HASHED_PLACES = 64
# NumPy parses the header as Python.
_ARRAY_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    OverflowError,
    EOFError,
    SyntaxError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)


@dataclass(frozen=True)
class PuzzleSet:
    """One set of a split; N examples of S tokens, P puzzles, G groups."""

    name: str
    inputs: np.ndarray  # [N, S] memory-mapped
    labels: np.ndarray  # [N, S] memory-mapped
    puzzle_identifiers: np.ndarray  # [P] int64
    puzzle_indices: np.ndarray  # [P + 1] int64
    group_indices: np.ndarray  # [G + 1] int64

    @cached_property
    def identifiers(self) -> np.ndarray:
        """[N] int64: the identifier of each example."""
        return np.repeat(self.puzzle_identifiers, np.diff(self.puzzle_indices))


def is_puzzle_folder(path: str | Path) -> bool:
    """Whether a path is meant to be a folder of puzzles."""
    return any((Path(path) / split / DATASET).is_file() for split in SPLITS)


def open_puzzles(path: str | Path) -> PuzzleData:
    """Open a puzzle folder: metadata and index arrays are read and checked, examples are mapped.

    Raises DataError, with file, index and mend.
    """
    path = Path(path)
    metadata = {split: _metadata(path / split / DATASET) for split in SPLITS if (path / split / DATASET).is_file()}
    if not metadata:
        raise DataError(
            f"{path}: is no puzzle folder, it has neither train/{DATASET} nor test/{DATASET}",
            hint="make one with trm build-puzzles, or give the folder that another builder wrote",
        )
    first_split, first = next(iter(metadata.items()))
    for split, other in metadata.items():
        for name in ("seq_len", "vocab_size", "pad_id", "ignore_label_id", "num_puzzle_identifiers"):
            if getattr(first, name) != getattr(other, name):
                _refuse(
                    path / split / DATASET,
                    f"{name} is {getattr(other, name)}, and {getattr(first, name)} in {first_split}/{DATASET}",
                )
    sets = {split: [_set(path, split, name, found) for name in found.sets] for split, found in metadata.items()}
    return PuzzleData(path.absolute(), metadata, sets, _manifest(path), _names(path, first.num_puzzle_identifiers))


class PuzzleData:
    """A folder of puzzles, with the same attributes as a `CapsuleFile`: tokens are sketches of capsules that have
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
        self.pad_id, self.ignore_label_id = first.pad_id, first.ignore_label_id
        self.blank_identifier_id = first.blank_identifier_id
        self.rows = {split: sum(len(part.inputs) for part in parts) for split, parts in sets.items()}
        self.prices = np.ones(self.num_capsules, np.float32)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What a run records of its data."""
        kind = "tokens" if self.about is None else self.about.kind
        return {"kind": f"puzzles: {kind}", "content_hash": self._fingerprint(), "class_names": None}

    def has(self, field: str) -> bool:
        """True if the rows have this field."""
        return field in self.fields

    def read(self, split: str, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
        """`sketches` and `labels` [n, S] and `puzzles` [n], int64, of examples of a split by number; labels to ignore
        are -100.
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
            found["sketches"][here] = part.inputs[own]
            found["labels"][here] = part.labels[own]
            found["puzzles"][here] = part.identifiers[own]
            begin += len(part.inputs)
        if self.ignore_label_id is not None:
            found["labels"][found["labels"] == self.ignore_label_id] = IGNORE_LABEL
        return found

    def rows_per_epoch(self, split: str) -> float:
        """Examples of one puzzle of every group, on average over the draws."""
        return float(sum(_mean_visit(part) for part in self.sets[split]))

    def require_trainable(self) -> None:
        """Raise DataError if there is nothing to learn from, or a token is none of the vocabulary."""
        if not self.rows.get("train"):
            raise DataError(f"{self.path}: has no training puzzles", hint=f"it has {', '.join(self.rows)}")
        low, high = self.require_labels("train")
        if low > high:
            raise DataError(f"{self.path}: every training label is to be ignored", hint="give the folder with answers")

    def require_labels(self, split: str) -> tuple[int, int]:
        """The least and the greatest label of a split that counts (the first is larger where there are none). Raises
        DataError for tokens outside of the vocabulary.
        """
        low, high = np.iinfo(np.int64).max, np.iinfo(np.int64).min
        for part in self.sets[split]:
            for begin in range(0, len(part.inputs), _SCAN_ROWS):
                inputs, labels = (getattr(part, name)[begin : begin + _SCAN_ROWS] for name in EXAMPLE_FIELDS)
                self._require_tokens(split, part, "inputs", begin, inputs)
                if self.ignore_label_id is not None:
                    ignored = labels == self.ignore_label_id
                    if ignored.all():
                        continue
                    # What is ignored need be no token.
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
        _refuse(
            array_path(self.path, split, part.name, name),
            f"example {begin + row}, position {place}: token {block[row, place]} is not in 0 .. vocab_size - 1 = "
            f"{(self.num_classes or 0) - 1}",
        )

    def _fingerprint(self) -> str:
        """Of metadata, indices and examples; of large arrays some places only."""
        digest = hashlib.sha256()
        for split, parts in self.sets.items():
            digest.update(self.metadata[split].model_dump_json().encode())
            for part in parts:
                for name in INDEX_FIELDS:
                    digest.update(np.ascontiguousarray(getattr(part, name)).tobytes())
                for name in EXAMPLE_FIELDS:
                    for piece in _places(getattr(part, name)):
                        digest.update(np.ascontiguousarray(piece).tobytes())
        return digest.hexdigest()


def require_mergeable(folders: Sequence[PuzzleData]) -> None:
    """Raises DataError where folders do not speak the same language."""
    first, names = folders[0], list[tuple[str, Path]]()
    for other in folders:
        for name in ("num_capsules", "num_classes", "pad_id", "ignore_label_id", "blank_identifier_id"):
            mine, theirs = getattr(first, name), getattr(other, name)
            if mine != theirs:
                what = {"num_capsules": "seq_len", "num_classes": "vocab_size"}.get(name, name)
                raise DataError(
                    f"{other.path}: {what} is {theirs}, and {mine} in {first.path}: these cannot be merged",
                    hint="build them with the same vocabulary and length",
                )
        for number, theirs in enumerate(other.names or []):
            mine, where = names[number] if number < len(names) else (theirs, other.path)
            if mine != theirs and BLANK not in (mine, theirs):
                raise DataError(
                    f"{other.path / IDENTIFIERS}: identifier {number} is {theirs!r}, and {mine!r} in {where}",
                    hint="build them together, so that every puzzle has an identifier of its own",
                )
            names[number : number + 1] = [(theirs, other.path) if mine == BLANK else (mine, where)]


def _mean_visit(part: PuzzleSet) -> float:
    """Examples that a visit of every group shows."""
    sizes, copies = np.diff(part.puzzle_indices), np.diff(part.group_indices)
    return float((sizes / np.repeat(copies, copies)).sum())


def _places(array: np.ndarray) -> Iterator[np.ndarray]:
    """All of an array, or some places of it."""
    rows = max(1, _HASHED_BYTES // max(1, array[:1].nbytes))
    if len(array) <= rows * _HASHED_PLACES:
        yield array
        return
    for start in np.linspace(0, len(array) - rows, _HASHED_PLACES).astype(int):
        yield array[start : start + rows]


def _refuse(path: Path, what: str, hint: str = "build the folder again") -> NoReturn:
    raise DataError(f"{path}: {what}", hint=hint)


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            _refuse(path, "is too large for what it should hold")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        _refuse(path, "is missing")
    except OSError as error:
        _refuse(path, f"cannot be read ({error.strerror})")
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        _refuse(path, f"is not JSON ({error})")


def _metadata(path: Path) -> Metadata:
    try:
        found = Metadata.model_validate(_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        _refuse(path, f"{where}: {first['msg'].lower()}")
    for name, limit in (("pad_id", found.vocab_size), ("blank_identifier_id", found.num_puzzle_identifiers)):
        if getattr(found, name) >= limit:
            _refuse(path, f"{name}={getattr(found, name)} is not below {limit}")
    if not found.sets or len(set(found.sets)) < len(found.sets):
        _refuse(path, f"sets are {found.sets!r:.80}, expected different names")
    for name in found.sets:
        if not 0 < len(name) <= 100 or "/" in name or "\\" in name or name[0] == "." or not name.isprintable():
            _refuse(path, f"a set is named {name!r:.80}")
    return found


def _manifest(path: Path) -> Manifest | None:
    if not (path / MANIFEST).is_file():
        return None
    try:
        return Manifest.model_validate(_json(path / MANIFEST))
    except ValidationError as error:
        first = error.errors()[0]
        _refuse(path / MANIFEST, f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg'].lower()}")


def _names(path: Path, count: int) -> list[str] | None:
    if not (path / IDENTIFIERS).is_file():
        return None
    found = _json(path / IDENTIFIERS)
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        _refuse(path / IDENTIFIERS, "is no list of names")
    if len(found) != count:
        _refuse(path / IDENTIFIERS, f"has {len(found)} names, but num_puzzle_identifiers={count} in {DATASET}")
    return found


def _array(path: Path) -> np.ndarray:
    """Whole numbers, mapped: a header that promises more than there is asks for no memory."""
    try:
        if not path.is_file():  # opening a pipe would wait for somebody to write
            _refuse(path, "is no file" if path.exists() else "is missing")
        with np.errstate(over="ignore"):
            found = np.lib.format.open_memmap(path, mode="r")
    except _ARRAY_ERRORS as error:
        _refuse(path, f"is no array that can be read ({' '.join(str(error).split())[:200]})")
    if found.dtype.kind not in "iu":
        _refuse(path, f"holds {found.dtype.name}, expected whole numbers")
    return found


def _set(folder: Path, split: str, name: str, metadata: Metadata) -> PuzzleSet:
    """One set, with its index arrays checked against each other and the metadata."""
    paths = {field: array_path(folder, split, name, field) for field in (*EXAMPLE_FIELDS, *INDEX_FIELDS)}
    examples = {field: _array(paths[field]) for field in EXAMPLE_FIELDS}
    indices = {field: _array(paths[field]) for field in INDEX_FIELDS}
    for field, array in examples.items():
        if array.ndim != 2 or array.shape[1] != metadata.seq_len:
            _refuse(paths[field], f"has shape {list(array.shape)}, and seq_len={metadata.seq_len} in {DATASET}")
    n = len(examples["inputs"])
    if len(examples["labels"]) != n:
        _refuse(paths["labels"], f"has {len(examples['labels'])} examples, the inputs {n}")
    for field, array in indices.items():
        if array.ndim != 1:
            _refuse(paths[field], f"has shape {list(array.shape)}, expected one dimension")
    indices = {field: np.array(array, np.int64) for field, array in indices.items()}
    puzzles = len(indices["puzzle_identifiers"])
    for field, last, what in (("puzzle_indices", n, "examples"), ("group_indices", puzzles, "puzzles")):
        array = indices[field]
        if len(array) == 0 or array[0] != 0 or array[-1] != last:
            _refuse(paths[field], f"does not go from 0 to the {last} {what}")
        wrong = np.flatnonzero(array[1:] <= array[:-1])  # a difference could overflow
        if len(wrong):
            _refuse(paths[field], f"index {wrong[0] + 1}: {array[wrong[0] + 1]} does not follow {array[wrong[0]]}")
    if len(indices["puzzle_indices"]) != puzzles + 1:
        _refuse(paths["puzzle_indices"], f"has {len(indices['puzzle_indices'])} entries for {puzzles} puzzles")
    ids = indices["puzzle_identifiers"]
    wrong = np.flatnonzero((ids < 0) | (ids >= metadata.num_puzzle_identifiers))
    if len(wrong):
        _refuse(
            paths["puzzle_identifiers"],
            f"puzzle {wrong[0]}: identifier {ids[wrong[0]]} is not below num_puzzle_identifiers="
            f"{metadata.num_puzzle_identifiers}",
        )
    groups = len(indices["group_indices"]) - 1
    if len(metadata.sets) == 1 and metadata.total_groups != groups:
        _refuse(
            folder / split / DATASET,
            f"total_groups is {metadata.total_groups}, but {paths['group_indices'].name} has {groups}",
        )
    return PuzzleSet(name, examples["inputs"], examples["labels"], **indices)
