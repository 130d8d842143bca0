"""What can be trained on and evaluated: a capsule file or a puzzle folder. The one place that tells them apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from trm_core.data.batch import WHOLE, CapsuleBatch, Part
from trm_core.data.puzzles.reader import PuzzleData, is_puzzle_folder, open_puzzles, require_mergeable
from trm_core.data.puzzles.stream import PuzzleStream, batch_of_puzzles
from trm_core.data.store import CapsuleFile, open_capsules
from trm_core.data.stream import SampleStream, require_same_shape, sequential_batches, spread
from trm_core.errors import ConfigError

Dataset = CapsuleFile | PuzzleData
Stream = SampleStream | PuzzleStream


def open_dataset(path: str | Path) -> Dataset:
    """Open the capsule file or puzzle folder at a path. Raises DataError."""
    if Path(path).is_dir() or is_puzzle_folder(path):
        return open_puzzles(path)
    return open_capsules(path)


def require_mixable(datasets: Sequence[Dataset], split: str) -> None:
    """Raise ConfigError if rows of these cannot be trained on together, DataError if a capsule file lacks the split."""
    files = [some for some in datasets if isinstance(some, CapsuleFile)]
    puzzles = [some for some in datasets if isinstance(some, PuzzleData)]
    if files and puzzles:
        raise ConfigError(f"{files[0].path} and {puzzles[0].path}: capsules and puzzles cannot be mixed")
    for file in files[1:]:
        require_same_shape(files[0], file, split)
    if puzzles:
        require_mergeable(puzzles)


def open_stream(entries: Sequence[tuple[Dataset, float]], split: str, *, seed: int, num_workers: int = 0) -> Stream:
    """An endless stream of rows of one or several datasets of one kind, by weight. Raises ConfigError or DataError."""
    files = [(file, weight) for file, weight in entries if isinstance(file, CapsuleFile)]
    puzzles = [(file, weight) for file, weight in entries if isinstance(file, PuzzleData)]
    if not puzzles:
        return SampleStream(files, split, seed=seed, num_workers=num_workers)
    require_mixable([dataset for dataset, _ in entries], split)
    if len({weight for _, weight in puzzles}) > 1:
        raise ConfigError(
            "data.path: folders of puzzles have no weights, each group of puzzles is visited once in an epoch",
            hint="leave the weights out",
        )
    return PuzzleStream([file for file, _ in puzzles], split, seed=seed)


def rows_per_epoch(dataset: Dataset, split: str) -> float:
    """Rows in one epoch."""
    return float(dataset.rows[split]) if isinstance(dataset, CapsuleFile) else dataset.rows_per_epoch(split)


def batches_of(
    dataset: Dataset, split: str, size: int, limit: int | None = None, part: Part = WHOLE
) -> Iterator[CapsuleBatch]:
    """All rows of a split once, in order, in batches of at most `size`, or `limit` rows spread evenly over it. Only the
    batches that belong to `part` are yielded.
    """
    if isinstance(dataset, CapsuleFile):
        yield from sequential_batches(dataset, split, size, limit=limit, part=part)
        return
    rows = spread(dataset.rows[split], limit)
    for begin in part.starts(len(rows), size):
        some = rows[begin : begin + size]
        yield batch_of_puzzles(dataset.read(split, some), some)


def label_batches(dataset: Dataset, split: str, size: int, limit: int | None = None) -> Iterator[Tensor]:
    """The labels of `batches_of`, [n] or [n, k] each, without reading the detail of capsules."""
    if isinstance(dataset, CapsuleFile):
        fields = ["labels"] if dataset.has("labels") else []
        batches = sequential_batches(dataset, split, size, fields, limit)
    else:
        batches = batches_of(dataset, split, size, limit)
    return (batch.labels for batch in batches)
