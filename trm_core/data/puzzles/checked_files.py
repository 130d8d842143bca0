"""The files of a puzzle folder, each checked as it is opened: a faulty or hostile folder is refused here."""

from __future__ import annotations

import json
import tokenize
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from pydantic import ValidationError

from trm_core.data.puzzles.layout import (
    DATASET,
    EXAMPLE_FIELDS,
    IDENTIFIERS,
    INDEX_FIELDS,
    MANIFEST,
    Manifest,
    Metadata,
    array_path,
)
from trm_core.errors import DataError

_MOST_JSON_BYTES = 1 << 30
# NumPy parses an array's header as Python source, which can fail in many ways.
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

    def read(self, field: str, rows: slice | np.ndarray) -> np.ndarray:
        """Some rows [n, S] of `inputs` or `labels`. Raises DataError if the file has become shorter since it was
        opened: touching the missing pages would end the process with SIGBUS. A file that is cut between this check and
        the read still does that.
        """
        array = getattr(self, field)
        if isinstance(array, np.memmap):
            _require_whole(array)
        return array[rows]


_LAYOUT = "docs/puzzles.md says what it has to hold; trm build-puzzles writes it"
_ANOTHER = f"correct it, or remove {MANIFEST} if it is of another folder"


def refuse(path: Path, what: str, hint: str = "build the folder again") -> NoReturn:
    raise DataError(f"{path}: {what}", hint=hint)


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            refuse(path, "is too large for what it should hold")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        refuse(path, "is missing")
    except OSError as error:
        refuse(path, f"cannot be read ({error.strerror})")
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        refuse(path, f"is not JSON ({error})")


def _refuse_fields(path: Path, error: ValidationError) -> NoReturn:
    """Name all missing fields at once, else the first wrong one."""
    problems = error.errors()
    missing = [".".join(map(str, one["loc"])) for one in problems if one["type"] == "missing"]
    if missing:
        refuse(path, f"has no {', '.join(missing)}", _LAYOUT)
    refuse(path, f"{'.'.join(map(str, problems[0]['loc'])) or 'it'}: {problems[0]['msg'].lower()}", _LAYOUT)


def read_metadata(path: Path) -> Metadata:
    try:
        found = Metadata.model_validate(_read_json(path))
    except ValidationError as error:
        _refuse_fields(path, error)
    for name, limit in (("pad_id", found.vocab_size), ("blank_identifier_id", found.num_puzzle_identifiers)):
        if getattr(found, name) >= limit:
            refuse(path, f"{name}={getattr(found, name)} is not below {limit}")
    if not found.sets or len(set(found.sets)) < len(found.sets):
        refuse(path, f"sets are {found.sets!r:.80}, expected different names")
    for name in found.sets:
        if not 0 < len(name) <= 100 or "/" in name or "\\" in name or name[0] == "." or not name.isprintable():
            refuse(path, f"a set is named {name!r:.80}")
    return found


def read_manifest(path: Path, about: Metadata) -> Manifest | None:
    """`trm.json`, if there is one. Raises DataError where it speaks of other sizes than `dataset.json`."""
    if not (path / MANIFEST).is_file():
        return None
    try:
        found = Manifest.model_validate(_read_json(path / MANIFEST))
    except ValidationError as error:
        _refuse_fields(path / MANIFEST, error)
    if found.height * found.width != about.seq_len:
        what = f"height {found.height} times width {found.width} is not seq_len={about.seq_len} of {DATASET}"
        refuse(path / MANIFEST, what, _ANOTHER)
    if len(found.symbols) != about.vocab_size:
        what = f"has {len(found.symbols)} symbols, but vocab_size={about.vocab_size} in {DATASET}"
        refuse(path / MANIFEST, what, _ANOTHER)
    return found


def read_names(path: Path, count: int) -> list[str] | None:
    if not (path / IDENTIFIERS).is_file():
        return None
    found = _read_json(path / IDENTIFIERS)
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        refuse(path / IDENTIFIERS, "is not a list of names")
    if len(found) != count:
        refuse(path / IDENTIFIERS, f"has {len(found)} names, but num_puzzle_identifiers={count} in {DATASET}")
    return found


def _array(path: Path) -> np.ndarray:
    """A memory-mapped array of integers, so that a header that promises more than the file holds allocates nothing."""
    try:
        if not path.is_file():  # opening a pipe would wait for somebody to write
            refuse(path, "is not a file" if path.exists() else "is missing")
        with np.errstate(over="ignore"):
            found = np.lib.format.open_memmap(path, mode="r")
    except _ARRAY_ERRORS as error:
        refuse(path, f"is not a readable array ({' '.join(str(error).split())[:200]})")
    if found.dtype.kind not in "iu":
        refuse(path, f"holds {found.dtype.name}, expected whole numbers")
    return found


def _require_whole(array: np.memmap) -> None:
    """Check that the file behind a mapped array, whatever its path leads to by now, is still as long as the array."""
    mapping: Any = array.base  # NumPy's types hide that this is the mmap, which keeps the file open
    size, needed = mapping.size(), array.offset + array.nbytes
    if size < needed:
        refuse(
            Path(str(array.filename)),
            f"was truncated while it was in use: it has {size} bytes, and had at least {needed} when it was opened",
            hint="build the folder again, and do not change it while something reads it",
        )


def read_set(folder: Path, split: str, name: str, metadata: Metadata) -> PuzzleSet:
    """One set, with its index arrays checked against each other and the metadata."""
    paths = {field: array_path(folder, split, name, field) for field in (*EXAMPLE_FIELDS, *INDEX_FIELDS)}
    examples = {field: _array(paths[field]) for field in EXAMPLE_FIELDS}
    indices = {field: _array(paths[field]) for field in INDEX_FIELDS}
    for field, array in examples.items():
        if array.ndim != 2 or array.shape[1] != metadata.seq_len:
            refuse(paths[field], f"has shape {list(array.shape)}, and seq_len={metadata.seq_len} in {DATASET}")
    n = len(examples["inputs"])
    if len(examples["labels"]) != n:
        refuse(paths["labels"], f"has {len(examples['labels'])} examples, the inputs {n}")
    for field, array in indices.items():
        if array.ndim != 1:
            refuse(paths[field], f"has shape {list(array.shape)}, expected one dimension")
    indices = {field: np.array(array, np.int64) for field, array in indices.items()}
    puzzles = len(indices["puzzle_identifiers"])
    for field, last, what in (("puzzle_indices", n, "examples"), ("group_indices", puzzles, "puzzles")):
        array = indices[field]
        if len(array) == 0 or array[0] != 0 or array[-1] != last:
            refuse(paths[field], f"does not go from 0 to the {last} {what}")
        wrong = np.flatnonzero(array[1:] <= array[:-1])  # a difference could overflow
        if len(wrong):
            refuse(paths[field], f"index {wrong[0] + 1}: {array[wrong[0] + 1]} does not follow {array[wrong[0]]}")
    if len(indices["puzzle_indices"]) != puzzles + 1:
        refuse(paths["puzzle_indices"], f"has {len(indices['puzzle_indices'])} entries for {puzzles} puzzles")
    ids = indices["puzzle_identifiers"]
    wrong = np.flatnonzero((ids < 0) | (ids >= metadata.num_puzzle_identifiers))
    if len(wrong):
        refuse(
            paths["puzzle_identifiers"],
            f"puzzle {wrong[0]}: identifier {ids[wrong[0]]} is not below num_puzzle_identifiers="
            f"{metadata.num_puzzle_identifiers}",
        )
    groups = len(indices["group_indices"]) - 1
    if len(metadata.sets) == 1 and metadata.total_groups != groups:
        refuse(
            folder / split / DATASET,
            f"total_groups is {metadata.total_groups}, but {paths['group_indices'].name} has {groups}",
        )
    return PuzzleSet(name, examples["inputs"], examples["labels"], **indices)
