"""Raw samples to be answered, from files, stdin or the command line, through the encoder of the training data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from trm_core.data.arriving import ArrivingLines, whole_text
from trm_core.data.build.arrays import class_name
from trm_core.data.build.folders import visible
from trm_core.data.build.records import Log
from trm_core.data.fields import IGNORE_LABEL
from trm_core.data.raw_files import raw_samples
from trm_core.data.raw_rows import Raw, Wanted, arc_samples, of_lines, of_value
from trm_core.data.unique_keys import parsed
from trm_core.errors import DataError, UsageError
from trm_core.inference.predictor import BATCH, Predictor
from trm_core.inference.samples import Sample, samples_of
from trm_core.inference.source import Source, capsule_recorder, known_labels
from trm_core.inference.trained import Trained


class ClassNumbers:
    """The numbers of class names, where a sample has one class."""

    def __init__(self, trained: Trained) -> None:
        shape = trained.model.data
        self._count = shape.num_classes if shape.answers == 1 else 0
        self._names = trained.class_names

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self._names or ())}

    def of(self, name: str) -> int | None:
        if self._names is not None and self._count:
            return self._by_name.get(name)
        return int(name) if name.isascii() and name.isdecimal() and int(name) < self._count else None

    def of_array(self, label: np.ndarray) -> np.ndarray | int:
        """The class number of one sample's label in an array, read as builders read it; or [k] numbers unchanged."""
        if label.ndim:
            return label
        name = class_name(label.item())
        number = None if name is None else self.of(name)
        return IGNORE_LABEL if number is None else number


def raw_files_source(paths: Sequence[Path], predictor: Predictor, wanted: Wanted, log: Log) -> Source:
    """All samples of files and folders, one after the other. Raises DataError."""

    def raws(log: Log) -> Iterator[Raw]:
        return chain.from_iterable(raw_samples(path, wanted, log) for path in paths)

    def start(first: int) -> Iterator[Sample | None]:
        return encoded(predictor, islice(raws(lambda message: None), first, None), wanted.kind, first)

    rows = sum(1 for _ in raws(log))  # errors are found before anything is answered
    name = ", ".join(map(str, paths[:3])) + (", ..." if len(paths) > 3 else "")
    if not rows:
        raise DataError(f"{name} holds no samples")
    return Source(name, rows, start, _identity(paths, wanted), capsule_recorder(predictor.trained), bulk=False)


def raw_stdin_source(stream: BinaryIO, predictor: Predictor, wanted: Wanted, log: Log) -> Source:
    """Samples as they arrive, each answered before the next is waited for. `start` raises DataError, also if nothing
    arrives.
    """

    def start(first: int) -> Iterator[Sample | None]:
        return encoded(predictor, islice(_filled(_arriving(stream, wanted, log)), first, None), wanted.kind, first)

    identity = {"data": "-"}
    return Source("stdin", None, start, identity, capsule_recorder(predictor.trained), bulk=False)


def raw_texts_source(texts: Sequence[str], predictor: Predictor, wanted: Wanted) -> Source:
    """Samples given on the command line: texts and paths of pictures as they are, others as JSON."""
    raws = [raw for number, text in enumerate(texts) for raw in _of_argument(text, f"--ask {number}", wanted)]

    def start(first: int) -> Iterator[Sample | None]:
        return encoded(predictor, raws[first:], wanted.kind, first)

    digest = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    identity = {"data": "--ask", "content_hash": digest, "kind": wanted.kind, "column": wanted.column}
    return Source("--ask", len(raws), start, identity, capsule_recorder(predictor.trained), bulk=False)


def encoded(predictor: Predictor, raws: Iterable[Raw | None], kind: str, first: int = 0) -> Iterator[Sample | None]:
    """Samples as the model sees them, encoded in blocks; a None in `raws` is passed on, after all samples before it and
    before the next one is asked for. first: the number of the first sample.
    """
    classes = ClassNumbers(predictor.trained)
    block: list[Raw] = []
    for raw in raws:
        if raw is not None:
            block.append(raw)
        if raw is None or len(block) == BATCH:
            yield from _encoded_block(predictor, block, kind, classes, first)
            first, block = first + len(block), []
        if raw is None:
            yield None
    yield from _encoded_block(predictor, block, kind, classes, first)


def _encoded_block(
    predictor: Predictor, block: list[Raw], kind: str, classes: ClassNumbers, first: int
) -> Iterator[Sample]:
    if not block:
        return
    fields = predictor.encoder.encode([raw.value for raw in block], kind, [raw.where for raw in block])
    for raw, sample in zip(block, samples_of(fields, predictor.trained, first), strict=True):
        number = None if raw.label is None else classes.of(raw.label)
        labels = known_labels(IGNORE_LABEL if number is None else number, predictor.trained)
        shown = " ".join(raw.value.split()) if isinstance(raw.value, str) else ""
        yield replace(sample, id=raw.id, labels=labels, excerpt="" if shown == raw.id else shown[:60])


def _arriving(stream: BinaryIO, wanted: Wanted, log: Log) -> Iterator[Raw | None]:
    if wanted.kind == "arc":
        yield from _arc_text(whole_text(stream, "stdin"), wanted)
        return
    lines = ArrivingLines(stream, "stdin")
    for raw in of_lines("stdin", lines, wanted, log):
        yield raw
        if lines.idle():
            yield None


def _arc_text(text: str, wanted: Wanted) -> Iterator[Raw]:
    """One JSON document, or one on each line."""
    try:
        document = parsed(text, "stdin")
    except (ValueError, RecursionError):
        yield from of_lines("stdin", enumerate(text.splitlines(), start=1), wanted)
        return
    yield from arc_samples(document, "stdin", wanted)


def _filled(raws: Iterator[Raw | None]) -> Iterator[Raw | None]:
    """The same samples. Raises DataError if there are none."""
    empty = True
    for raw in raws:
        empty = False
        yield raw
    if empty:
        raise DataError("stdin holds no samples", hint="give a sample on each line")


def _of_argument(text: str, where: str, wanted: Wanted) -> Iterator[Raw]:
    if wanted.kind in ("text", "images"):
        if not text.strip():
            raise UsageError(f"{where} is empty")
        yield Raw(text, where, where if wanted.kind == "text" else text)
        return
    try:
        value = parsed(text, where)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{where}: is not JSON ({str(error)[:100]})", hint=f"a sample of {wanted.kind} is given as JSON"
        ) from None
    yield from arc_samples(value, where, wanted) if wanted.kind == "arc" else [of_value(value, where, wanted)]


def _identity(paths: Sequence[Path], wanted: Wanted) -> dict[str, Any]:
    """What identifies the files and changes with them."""
    files = [file for path in paths for file in (visible(path, "**/*") if path.is_dir() else [path])]
    state = hashlib.sha256()
    for file in filter(Path.is_file, files):  # a broken link is not a file
        stat = file.stat()
        state.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return {
        "data": [str(path.resolve()) for path in paths],
        "content_hash": state.hexdigest(),
        "kind": wanted.kind,
        "column": wanted.column,
        "label": wanted.label,
    }
