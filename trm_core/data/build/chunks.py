"""The third pass: encode the samples chunk by chunk into the work directory, in this process or in several.

A chunk is a fixed range of rows of one modality, so its content depends neither on the number of workers nor on whether
the build was killed and run again.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from trm_core.data.build.augment import Augmentation
from trm_core.data.build.concepts import Concepts
from trm_core.data.build.encoders import Encoder, Layout
from trm_core.data.build.fitting import detail_of
from trm_core.data.build.modality import Modality
from trm_core.data.build.plan import Plan, stream
from trm_core.data.build.records import Progress
from trm_core.data.build.splits import TRAIN
from trm_core.data.build.twins import row_digests
from trm_core.data.build.work import WorkDir
from trm_core.data.threads import one_thread
from trm_core.data.workers import Workers
from trm_core.errors import DataError, StoppedEarly

_CHUNK_BYTES = 16 << 20
_CHUNK_ROWS = 256
# Modules that a worker needs for encoding and that take seconds to import.
WORKER_IMPORTS = (__name__, "sklearn.linear_model", "sklearn.feature_extraction.text")


@dataclass(frozen=True)
class Chunk:
    """Rows [start, stop) of the plan, all of one modality."""

    index: int
    modality: int
    start: int
    stop: int


@dataclass(frozen=True)
class Coder:
    """Everything that turns contents into stored fields; sent to each worker once."""

    encoders: list[Encoder]
    layouts: list[Layout]
    concepts: Concepts | None
    augmentation: Augmentation | None

    def run(self, modality: int, contents: list[Any], train: np.ndarray, with_modality: bool) -> dict[str, np.ndarray]:
        """Stored fields of a chunk, with `source` (index into `contents`), `augmented` and `digest` for each row."""
        source = np.arange(len(contents), dtype=np.int64)
        augmented = np.zeros(len(contents), dtype=bool)
        if self.augmentation is not None:
            contents, source, augmented = _augment(contents, train, self.augmentation)
        with one_thread():
            encoded = self.encoders[modality].encode(contents)
            fields = self.layouts[modality].finish(encoded)
            if self.concepts is not None:
                fields["labels"] = self.concepts.label(detail_of(fields), fields.get("mask"))
        if encoded.labels is not None:
            fields["labels"] = encoded.labels
        if with_modality:
            fields["modality"] = np.full(len(source), modality, dtype=np.int64)
        return fields | {"source": source, "augmented": augmented, "digest": row_digests(fields)}


def chunk_list(plan: Plan, layout: Layout, augmentation: Augmentation | None) -> list[Chunk]:
    """Cut the plan's rows into chunks of a bounded number of bytes."""
    row_bytes = (
        4
        * layout.num_capsules
        * layout.dim
        * (layout.num_children + 1)
        * (1 if augmentation is None else augmentation.most)
    )
    rows = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // row_bytes))
    chunks: list[Chunk] = []
    for number, (start, stop) in enumerate(zip(plan.starts[:-1], plan.starts[1:], strict=True)):
        for begin in range(start, stop, rows):
            chunks.append(Chunk(len(chunks), number, begin, min(begin + rows, stop)))
    return chunks


def encode_all(
    modalities: list[Modality],
    coder: Coder,
    chunks: list[Chunk],
    plan: Plan,
    work: WorkDir,
    workers: Workers,
    progress: Progress,
    should_stop: Callable[[], bool],
) -> int:
    """Encode and store every chunk that the work directory lacks; returns how many were there already.

    Raises `StoppedEarly` when `should_stop` says so between two chunks; the encoded chunks stay.
    """
    have = {chunk.index for chunk in chunks if work.has_chunk(chunk.index)}
    jobs = _jobs(modalities, [chunk for chunk in chunks if chunk.index not in have], plan)
    done = len(have)
    progress("encode", done, len(chunks))
    with_modality = len(modalities) > 1
    run: Callable[..., tuple[Chunk, dict[str, np.ndarray]]]
    if workers.pool is None:
        run = functools.partial(_encode, coder, with_modality)
    else:
        pickled = pickle.dumps(coder)
        run = functools.partial(_encode_there, work.save_coder(pickled), _digest(pickled), with_modality)
    with closing(workers.in_order(run, jobs)) as results:
        for chunk, fields in results:
            _complete(fields, chunk, plan)
            work.save_chunk(chunk.index, fields)
            done += 1
            progress("encode", done, len(chunks))
            if done < len(chunks) and should_stop():
                raise StoppedEarly(
                    f"stopped after {done} of {len(chunks)} chunks; they are kept in {work.folder}",
                    hint="run the same command again to continue",
                )
    return len(have)


def _jobs(modalities: list[Modality], todo: list[Chunk], plan: Plan) -> Iterator[tuple[Chunk, list[Any], np.ndarray]]:
    """Chunks with their contents, read in source order; contents that are not needed are skipped."""
    for number, modality in enumerate(modalities):
        position = plan.starts[number]
        own = [chunk for chunk in todo if chunk.modality == number]
        if not own:
            continue
        records = stream(modality, plan.starts[number + 1] - position)
        for chunk in own:
            skipped = chunk.start - position
            contents = [record.content for record in islice(records, skipped, skipped + chunk.stop - chunk.start)]
            position = chunk.stop
            yield chunk, contents, plan.split[chunk.start : chunk.stop] == TRAIN


def _complete(fields: dict[str, np.ndarray], chunk: Chunk, plan: Plan) -> None:
    """Add what the plan knows about the rows: split, source row, class id."""
    rows = chunk.start + fields.pop("source")
    fields["ids"] = rows
    fields["split"] = plan.split[rows]
    if plan.labels is not None:
        fields["labels"] = plan.labels[rows]


def _encode(
    coder: Coder, with_modality: bool, chunk: Chunk, contents: list[Any], train: np.ndarray
) -> tuple[Chunk, dict[str, np.ndarray]]:
    return chunk, coder.run(chunk.modality, contents, train, with_modality)


def _encode_there(
    coder: Path, digest: str, with_modality: bool, chunk: Chunk, contents: list[Any], train: np.ndarray
) -> tuple[Chunk, dict[str, np.ndarray]]:
    """`_encode` in a worker."""
    return _encode(_read_coder(coder, digest), with_modality, chunk, contents, train)


@functools.lru_cache(maxsize=1)
def _read_coder(path: Path, digest: str) -> Coder:
    """The coder that this build has just written. It travels by file because it is large and every worker needs it
    once. Nothing else is unpickled: raises DataError if the bytes are others.
    """
    pickled = path.read_bytes()
    if _digest(pickled) != digest:
        raise DataError(f"{path}: was changed while it was in use", hint="run the build again")
    coder: Coder = pickle.loads(pickled)
    return coder


def _digest(pickled: bytes) -> str:
    return hashlib.sha256(pickled).hexdigest()


def _augment(
    contents: list[Any], train: np.ndarray, augmentation: Augmentation
) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """Training samples followed by their copies; the others alone."""
    samples: list[Any] = []
    source: list[int] = []
    augmented: list[bool] = []
    for row, content in enumerate(contents):
        variants = augmentation.variants(content) if train[row] else [content]
        samples += variants
        source += [row] * len(variants)
        augmented += [False] + [True] * (len(variants) - 1)
    return samples, np.asarray(source, dtype=np.int64), np.asarray(augmented, dtype=bool)
