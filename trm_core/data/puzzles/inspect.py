"""A full look at a puzzle folder: what it holds. Used by `trm inspect-dataset`.

What the contents are good for is judged in one place, the checks of `trm_core.diagnose`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trm_core.data.puzzles.reader import PuzzleData, open_puzzles
from trm_core.data.puzzles.survey import Survey, survey
from trm_core.errors import DataError


@dataclass(frozen=True)
class PuzzleSplitFacts:
    """One split. `examples_per_puzzle`: mean, minimum, maximum; for the rest see `Survey`."""

    examples: int
    puzzles: int
    groups: int
    examples_per_puzzle: tuple[float, int, int]
    inputs: list[int]
    labels: list[int]
    ignored: int
    unanswered: int
    copied: int
    repeated: int
    contradicting: int


@dataclass(frozen=True)
class PuzzleInspection:
    """`shared`: test examples that are also training examples. `surveys`: of all splits; not part of `to_dict`."""

    path: Path
    kind: str
    symbols: list[str] | None
    seq_len: int
    vocab_size: int
    num_puzzle_identifiers: int
    pad_id: int
    ignore_label_id: int | None
    content_hash: str
    splits: dict[str, PuzzleSplitFacts]
    shared: int
    notes: list[str]
    surveys: dict[str, Survey]

    def to_dict(self) -> dict[str, Any]:
        document = asdict(replace(self, surveys={})) | {"path": str(self.path)}
        del document["surveys"]
        return document


def inspect_puzzles(
    path: Path, split: str | None = None, progress: Callable[[str, int, int], None] = lambda stage, done, total: None
) -> PuzzleInspection:
    """Read everything once. `split` limits what is listed. Raises DataError if the folder cannot be read."""
    data = open_puzzles(path)
    if split is not None and split not in data.rows:
        raise DataError(f"{path}: has no split {split!r}", hint=f"it has {', '.join(data.rows)}")
    found: dict[str, Survey] = {}
    for name, rows in data.rows.items():
        data.require_labels(name)
        found[name] = survey(data, name, on_rows=lambda done, name=name, rows=rows: progress(name, done, rows))  # type: ignore[misc]
    return PuzzleInspection(
        path=path,
        kind="unknown" if data.about is None else data.about.kind,
        symbols=None if data.about is None else data.about.symbols,
        seq_len=data.num_capsules,
        vocab_size=data.num_classes or 0,
        num_puzzle_identifiers=data.num_puzzles,
        pad_id=data.pad_id,
        ignore_label_id=data.ignore_label_id,
        content_hash=str(data.manifest["content_hash"]),
        splits={name: _facts(data, name, one) for name, one in found.items() if split in (None, name)},
        shared=_shared(found),
        notes=[] if data.rows.get("train") else ["there are no training puzzles"],
        surveys=found,
    )


def _shared(found: dict[str, Survey]) -> int:
    if "train" not in found or "test" not in found:
        return 0
    return int(np.isin(found["test"].answered, found["train"].answered).sum())


def _facts(data: PuzzleData, split: str, found: Survey) -> PuzzleSplitFacts:
    parts = data.sets[split]
    sizes = np.concatenate([np.diff(part.puzzle_indices) for part in parts])
    return PuzzleSplitFacts(
        examples=found.examples,
        puzzles=len(sizes),
        groups=sum(len(part.group_indices) - 1 for part in parts),
        examples_per_puzzle=(float(sizes.mean()), int(sizes.min()), int(sizes.max())) if len(sizes) else (0.0, 0, 0),
        inputs=found.inputs.tolist(),
        labels=found.labels.tolist(),
        ignored=found.ignored,
        unanswered=found.unanswered,
        copied=found.copied,
        repeated=found.repeated,
        contradicting=found.contradicting,
    )
