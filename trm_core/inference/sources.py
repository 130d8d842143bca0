"""What is asked of a model -> `Source`s: capsule files, arrays of capsules, raw samples, puzzles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from trm_core.data.arriving import whole_text
from trm_core.data.build.array_files import ArrayFile, open_arrays
from trm_core.data.build.arrays import LABEL_ARRAYS
from trm_core.data.encoding import Encoding
from trm_core.data.raw_rows import Wanted
from trm_core.data.store import CapsuleFile, open_capsules
from trm_core.errors import DataError, UsageError
from trm_core.inference.predictor import Predictor
from trm_core.inference.puzzle_source import puzzle_source, puzzle_text_source
from trm_core.inference.raw_source import ClassNumbers, raw_files_source, raw_stdin_source, raw_texts_source
from trm_core.inference.samples import Sample, expected_shapes, samples_of
from trm_core.inference.source import Source, capsule_recorder, identity_of_file, known_labels
from trm_core.inference.trained import Trained

STDIN = Path("-")
_HDF5 = b"\x89HDF\r\n\x1a\n"
_H5_SUFFIXES = (".h5", ".hdf5", ".hdf")
_BLOCK = 256  # rows read at once


@dataclass(frozen=True)
class Asked:
    """What is to be answered: files (or stdin, as "-"), or `texts` themselves. `kind`, `column`, `label`: for raw
    samples; `split`: for a capsule file or puzzle folder.
    """

    paths: tuple[Path, ...] = ()
    texts: tuple[str, ...] = ()
    split: str | None = None
    kind: str | None = None
    column: str | None = None
    label: str | None = None

    def require(self) -> None:
        """Raise UsageError if it contradicts itself, and DataError for a file that does not exist."""
        if bool(self.paths) == bool(self.texts):
            what = "both files and --ask" if self.paths else "nothing to answer"
            raise UsageError(what, hint="name files, or - for stdin, or give a sample with --ask")
        if STDIN in self.paths and len(self.paths) > 1:
            raise UsageError("- (stdin) cannot be combined with other sources", hint="run the command once for each")
        for path in self.paths:
            if path != STDIN and not path.exists():
                hint = "to give the text itself, use --ask" if " " in path.name else None
                raise DataError(f"{path}: no such file or folder", hint=hint)

    def refuse_of_samples(self, what: str) -> None:
        """Raise UsageError for an option that only raw samples have, where `what` is asked."""
        for name, given in (("--kind", self.kind), ("--column", self.column), ("--label", self.label)):
            if given is not None:
                raise UsageError(f"{name} is for raw samples, not for {what}", hint=f"leave {name} out")


def open_source(asked: Asked, predictor: Predictor, stdin: BinaryIO, log: Callable[[str], None]) -> Source:
    """A capsule file, an npz with sketches, or raw samples as `raw_files` reads them and, from stdin, `raw_rows`. For a
    puzzle model whatever `puzzle_source` reads. Raises DataError or UsageError.
    """
    paths, texts = asked.paths, asked.texts
    if predictor.trained.puzzles is not None:
        return _puzzles(asked, predictor, stdin, log)
    if len(paths) == 1 and paths[0] != STDIN:
        (path,) = paths
        if path.is_file() and _is_capsule_file(path):
            asked.refuse_of_samples("a capsule file")
            return _capsules(path, predictor.trained, asked.split)
        arrays = open_arrays(path) if path.suffix.lower() == ".npz" and path.is_file() else {}
        if "sketches" in arrays:
            _refuse_split(asked)
            asked.refuse_of_samples("arrays of capsules")
            return _arrays(path, arrays, predictor.trained)
    _refuse_split(asked)
    if any(path.is_file() and _is_capsule_file(path) for path in paths):
        raise UsageError("a capsule file cannot be combined with other sources", hint="run the command once for each")
    wanted = _wanted(asked, predictor)
    if texts:
        return raw_texts_source(texts, predictor, wanted)
    if paths == (STDIN,):
        return raw_stdin_source(stdin, predictor, wanted, log)
    return raw_files_source(paths, predictor, wanted, log)


def text_asked(asked: Asked, stdin: BinaryIO) -> tuple[str, str] | None:
    """The text in which puzzles are asked, and what it is called; None if they are in `asked.paths[0]`. Raises
    UsageError.
    """
    asked.refuse_of_samples("puzzles")
    if asked.texts:
        return "\n".join(asked.texts), "--ask"
    if len(asked.paths) > 1:
        raise UsageError("one file or folder of puzzles at a time", hint="run the command once for each")
    if asked.paths != (STDIN,):
        return None
    if asked.split is not None:
        raise UsageError("stdin has no splits", hint="leave --split out")
    return whole_text(stdin, "stdin"), "stdin"


def _puzzles(asked: Asked, predictor: Predictor, stdin: BinaryIO, log: Callable[[str], None]) -> Source:
    text = text_asked(asked, stdin)
    if text is None:
        return puzzle_source(asked.paths[0], predictor, asked.split, log)
    return puzzle_text_source(*text, predictor, log)


def _wanted(asked: Asked, predictor: Predictor) -> Wanted:
    modality = predictor.encoder.choose(asked.kind)
    numbers = ClassNumbers(predictor.trained)
    return Wanted(modality.kind, lambda name: numbers.of(name) is not None, asked.column, asked.label)


def _refuse_split(asked: Asked) -> None:
    if asked.split is not None:
        raise UsageError("raw samples have no splits", hint="leave --split out")


def _capsules(path: Path, trained: Trained, split: str | None) -> Source:
    file = open_capsules(path)
    found = None if trained.encoding is None else trained.encoding.contradiction(Encoding.of(file.manifest))
    if found is not None:
        raise DataError(f"{path} does not fit the data the model was trained on: {found.why}", hint=found.hint)
    names = [name for name in expected_shapes(trained.model.data) if file.has(name)]
    split = split or next((name for name in ("test", "validation", "train") if file.rows.get(name)), "test")
    if not file.rows.get(split):
        raise UsageError(f"{path} has no split '{split}'", hint=f"it has: {', '.join(file.rows)}")
    # Children are read one opened capsule at a time, because most are never looked at.
    at_once = [name for name in names if name != "children"]
    labelled = ["labels"] if file.has("labels") else []

    def start(first: int) -> Iterator[Sample]:
        for begin in range(first, file.rows[split], _BLOCK):
            rows = slice(begin, min(begin + _BLOCK, file.rows[split]))
            fields: dict[str, Any] = dict(file.read(split, rows, [*at_once, *labelled]))
            labels = fields.pop("labels", None)
            if "children" in names:
                fields["children"] = lambda row, capsule: _child(file, split, row, capsule)
            for number, sample in enumerate(samples_of(fields, trained, begin)):
                yield sample if labels is None else replace(sample, labels=known_labels(labels[number], trained))

    identity = {"data": str(path.resolve()), "split": split, "content_hash": file.manifest.get("content_hash")}
    return Source(str(path), file.rows[split], start, identity, capsule_recorder(trained))


def _is_capsule_file(path: Path) -> bool:
    """Whether it is HDF5, or claims to be by its suffix."""
    try:
        with path.open("rb") as file:
            return file.read(len(_HDF5)) == _HDF5 or path.suffix.lower() in _H5_SUFFIXES
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _child(file: CapsuleFile, split: str, row: int, capsule: int) -> Any:
    return file.read(split, slice(row, row + 1), ["children"])["children"][0, capsule]


def _arrays(path: Path, arrays: Mapping[str, ArrayFile], trained: Trained) -> Source:
    expected = expected_shapes(trained.model.data)
    found = {name: array for name, array in arrays.items() if name in expected}
    labels = next((arrays[name] for name in LABEL_ARRAYS if name in arrays), None)
    if labels is not None:
        found["labels"] = labels
    numbers = ClassNumbers(trained)
    counts = {name: array.shape[0] for name, array in found.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"{path}: arrays of different lengths: {counts}")
    if not counts["sketches"]:
        raise DataError(f"{path} holds no samples")

    def start(first: int) -> Iterator[Sample]:
        rows = zip(*(array.rows() for array in found.values()), strict=True)
        skipped = islice(rows, first, None)
        for number, values in enumerate(skipped, start=first):
            fields = {name: np.asarray(value)[None] for name, value in zip(found, values, strict=True)}
            label = fields.pop("labels", None)
            known = None if label is None else known_labels(numbers.of_array(label[0]), trained)
            for sample in samples_of(fields, trained, number):
                yield replace(sample, labels=known)

    return Source(str(path), counts["sketches"], start, identity_of_file(path), capsule_recorder(trained))
