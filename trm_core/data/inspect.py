"""A full look at one capsule file (or legacy `.pt`): what it holds, whether it is intact, what opening capsules is
worth.

Reads the file in pieces and keeps only an 8-byte digest per sample. Used by `trm inspect-dataset`. What the contents
are good for is judged in one place, the checks of `trm_core.diagnose`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trm_core.data.build.twins import row_digests
from trm_core.data.fields import IGNORE_LABEL
from trm_core.data.probe import ProbeSample, measure
from trm_core.data.store.reader import CapsuleFile, open_capsules
from trm_core.errors import DataError

Progress = Callable[[str, int, int], None]
LEGACY_SPLIT = "all"
_PIECE_BYTES = 8 << 20
_NORM_ROWS = 2000


@dataclass
class SplitFacts:
    """One split. `labels`: id -> number of labels; `norms`: field -> [mean, minimum, maximum] L2 norm of a vector;
    `detail` [k]: RMS distance of children from their sketch, per dimension; `repeated`: rows that equal an earlier one.
    """

    rows: int
    labels: dict[int, int] = field(default_factory=dict)
    ignored: int = 0
    norms: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    detail: list[float] | None = None
    repeated: int = 0

    @property
    def chance(self) -> float | None:
        """Accuracy of always naming this split's most frequent class."""
        return max(self.labels.values()) / sum(self.labels.values()) if self.labels else None


@dataclass
class Inspection:
    """Everything `inspect_dataset` found. `fields`: name -> shape with N, dtype and bytes, over all splits;
    `across_splits`: "first/second" -> rows of the second that are also in the first; `problems` are damage and what
    training refuses, `notes` are neither; `norm_samples` are for the plot and not part of `to_dict`.
    """

    path: Path
    kind: str
    manifest: dict[str, Any]
    bytes: int
    num_capsules: int
    num_children: int
    dim: int
    checksum_dim: int
    task: str
    num_classes: int | None
    class_names: list[str] | None
    fields: dict[str, dict[str, Any]]
    capabilities: dict[str, bool]
    splits: dict[str, SplitFacts]
    across_splits: dict[str, int]
    expansion_value: dict[str, Any] | None
    problems: list[str]
    notes: list[str]
    norm_samples: dict[str, np.ndarray]

    def to_dict(self) -> dict[str, Any]:
        document = {name: value for name, value in asdict(self).items() if name != "norm_samples"}
        for name, facts in self.splits.items():
            document["splits"][name]["chance"] = facts.chance
        return document | {"path": str(self.path)}


class _Content(Protocol):
    """What both formats offer."""

    rows: dict[str, int]

    def pieces(self, split: str) -> Iterator[tuple[int, dict[str, np.ndarray]]]: ...


def is_legacy(path: Path) -> bool:
    """Whether `inspect_dataset` treats the file as a legacy one, written by torch."""
    return path.suffix.lower() in (".pt", ".pth")


def inspect_dataset(path: Path, *, split: str | None = None, progress: Progress | None = None) -> Inspection:
    """Read everything once or twice. `split` limits labels, norms and detail to one split.

    Raises `DataError` if the file cannot be opened or has no such split; what is wrong inside it is in `problems`.
    """
    report = progress or _no_progress
    if is_legacy(path):
        return _inspect_legacy(path, split, report)
    with open_capsules(path) as file:
        content = _CapsuleContent(file)
        shown = _shown(path, content, split)
        found = file.verify(report)
        problems = [problem.message for problem in found if problem.severity == "error"]
        notes = [problem.message for problem in found if problem.severity == "note"]
        problems += _training_problem(file)
        names = file.manifest.get("class_names")
        inspection = Inspection(
            path=path,
            kind=str(file.manifest.get("kind", "unknown")),
            manifest=file.manifest,
            bytes=path.stat().st_size,
            num_capsules=file.num_capsules,
            num_children=file.num_children,
            dim=file.dim,
            checksum_dim=file.checksum_dim,
            task=file.task,
            num_classes=file.num_classes,
            class_names=names if isinstance(names, list) else None,
            fields={
                name: _field_facts(file.layout.row_shape(name), file.layout.dtypes[name], sum(file.rows.values()))
                for name in file.fields
            },
            capabilities={
                name: file.has(name) for name in ("children", "checksums", "labels", "parents", "mask", "modality")
            }
            | {"prices": file.has_prices},
            splits={},
            across_splits={},
            expansion_value=None,
            problems=problems,
            notes=notes,
            norm_samples={},
        )
        augmented = file.manifest.get("augmented_rows", 0)
        _survey(inspection, content, shown, int(augmented) if isinstance(augmented, int) else 0, report)
    return inspection


def _inspect_legacy(path: Path, split: str | None, progress: Progress) -> Inspection:
    from trm_core.data.legacy import read_legacy

    arrays = read_legacy(path)
    content = _LegacyContent(arrays)
    children, sketches = arrays.get("children"), arrays["sketches"]
    labels = arrays.get("labels")
    inspection = Inspection(
        path=path,
        kind="legacy",
        manifest={},
        bytes=path.stat().st_size,
        num_capsules=sketches.shape[1],
        num_children=0 if children is None else children.shape[2],
        dim=sketches.shape[2],
        checksum_dim=arrays["checksums"].shape[2] if "checksums" in arrays else 0,
        task="classes",
        num_classes=None if labels is None else int(labels.max()) + 1,
        class_names=None,
        fields={
            name: _field_facts(values.shape[1:], str(values.dtype), len(values)) for name, values in arrays.items()
        },
        capabilities={
            name: name in arrays
            for name in ("children", "checksums", "labels", "parents", "mask", "modality", "prices")
        },
        splits={},
        across_splits={},
        expansion_value=None,
        problems=[],
        notes=["a legacy file has no splits: convert it with `trm build-capsules`"],
        norm_samples={},
    )
    if "checksums" in arrays:
        inspection.notes.append("checksums of a legacy file cannot be verified: their projection is not known")
    _survey(inspection, content, _shown(path, content, split), 0, progress)
    return inspection


class _CapsuleContent:
    def __init__(self, file: CapsuleFile) -> None:
        self.rows = file.rows
        self._file = file

    def pieces(self, split: str) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        row_bytes = sum(self._file.layout.row_bytes(name) for name in self._file.fields)
        for piece in self._file.slices(split, row_bytes, _PIECE_BYTES):
            yield piece.start, self._file.read(split, piece)


class _LegacyContent:
    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays = arrays
        self.rows = {LEGACY_SPLIT: len(arrays["sketches"])}

    def pieces(self, split: str) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        row_bytes = sum(values[:1].nbytes for values in self._arrays.values())
        step = max(1, _PIECE_BYTES // max(1, row_bytes))
        for start in range(0, self.rows[split], step):
            yield start, {name: values[start : start + step] for name, values in self._arrays.items()}


def _shown(path: Path, content: _Content, split: str | None) -> list[str]:
    if split is None:
        return list(content.rows)
    if split not in content.rows:
        raise DataError(f"{path}: has no split {split!r}", hint=f"it has {', '.join(content.rows)}")
    return [split]


def _training_problem(file: CapsuleFile) -> list[str]:
    try:
        file.require_trainable()
    except DataError as error:
        return [error.message.removeprefix(f"{file.path}: ")]
    return []


def _field_facts(row_shape: tuple[int, ...], dtype: str, rows: int) -> dict[str, Any]:
    size = int(np.prod(row_shape, dtype=np.int64)) * np.dtype(dtype).itemsize * rows
    return {"shape": [rows, *row_shape], "dtype": dtype, "bytes": size}


def _survey(inspection: Inspection, content: _Content, shown: list[str], augmented: int, progress: Progress) -> None:
    """Fill in what needs the values: splits, duplicates, norms, detail and the probe."""
    counts = dict(content.rows)
    if "train" in counts:
        counts["train"] -= augmented
    rank = len(inspection.fields["labels"]["shape"]) if "labels" in inspection.fields else 1
    sample = ProbeSample(counts, inspection.num_capsules, rank == 2)
    digests: dict[str, np.ndarray] = {}
    norms: dict[str, list[np.ndarray]] = {"sketches": [], "children": []}
    for split, rows in content.rows.items():
        survey = _SplitSurvey(rows, norms if split in shown else None)
        for start, fields in content.pieces(split):
            survey.add(start, fields)
            sample.offer(split, start, fields)
            progress(f"{split}: values", start + len(fields["sketches"]), rows)
        digests[split] = np.concatenate(survey.digests)
        if split in shown:
            inspection.splits[split] = survey.facts(digests[split])
    inspection.norm_samples = {name: np.concatenate(parts) for name, parts in norms.items() if parts}
    _compare_splits(inspection, digests)
    progress("probe", 0, 1)
    inspection.expansion_value = measure(sample)
    progress("probe", 1, 1)


def _compare_splits(inspection: Inspection, digests: Mapping[str, np.ndarray]) -> None:
    names = list(digests)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            shared = int(np.isin(digests[second], digests[first]).sum())
            if shared:
                inspection.across_splits[f"{first}/{second}"] = shared


class _SplitSurvey:
    """Running sums over the pieces of one split."""

    def __init__(self, rows: int, norms: dict[str, list[np.ndarray]] | None) -> None:
        self.digests: list[np.ndarray] = []
        self._rows = rows
        self._norms = norms
        self._labels: dict[int, int] = {}
        self._ignored = 0
        self._sums: dict[str, list[float]] = {}  # field -> [sum of norms, vectors, minimum, maximum]
        self._detail: np.ndarray | None = None
        self._capsules: np.ndarray | None = None

    def add(self, start: int, fields: dict[str, np.ndarray]) -> None:
        self.digests.append(row_digests(fields))
        if "labels" in fields:
            ids, counts = np.unique(fields["labels"], return_counts=True)
            for label, count in zip(ids.tolist(), counts.tolist(), strict=True):
                if label == IGNORE_LABEL:
                    self._ignored += count
                else:
                    self._labels[label] = self._labels.get(label, 0) + count
        mask = fields["mask"] if "mask" in fields else np.ones(fields["sketches"].shape[:2], dtype=bool)
        for name in ("sketches", "children"):
            if name in fields:
                self._add_norms(name, fields[name], mask, start)
        if "children" in fields:
            self._add_detail(fields, mask)

    def facts(self, digests: np.ndarray) -> SplitFacts:
        detail = None
        if self._detail is not None and self._capsules is not None:
            detail = np.sqrt(self._detail / np.maximum(self._capsules, 1)).tolist()
        return SplitFacts(
            rows=self._rows,
            labels=dict(sorted(self._labels.items())),
            ignored=self._ignored,
            norms={name: (total / n, low, high) for name, (total, n, low, high) in self._sums.items() if n},
            detail=detail,
            repeated=len(digests) - len(np.unique(digests)),
        )

    def _add_norms(self, name: str, values: np.ndarray, mask: np.ndarray, start: int) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.linalg.norm(values.astype(np.float32), axis=-1)
        real = norms[mask]
        finite = real[np.isfinite(real)]
        if len(finite.ravel()):
            low, high = float(finite.min()), float(finite.max())
            total, n, least, most = self._sums.get(name, [0.0, 0.0, low, high])
            self._sums[name] = [
                total + float(finite.sum(dtype=np.float64)),
                n + finite.size,
                min(least, low),
                max(most, high),
            ]
        if self._norms is not None:
            every = -(-self._rows // _NORM_ROWS)
            rows = np.arange(len(norms))[(start + np.arange(len(norms))) % every == 0]
            kept = norms[rows][mask[rows]].ravel()
            self._norms[name].append(kept[np.isfinite(kept)])

    def _add_detail(self, fields: dict[str, np.ndarray], mask: np.ndarray) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            gap = fields["children"].astype(np.float32) - fields["sketches"].astype(np.float32)[:, :, None]
            squares = np.nan_to_num(np.mean(gap**2, axis=(2, 3)), posinf=0.0)
        if self._detail is None:
            self._detail, self._capsules = np.zeros(mask.shape[1]), np.zeros(mask.shape[1])
        self._detail += np.where(mask, squares, 0.0).sum(axis=0)
        self._capsules += mask.sum(axis=0)


def _no_progress(stage: str, done: int, total: int) -> None:
    """For callers that want no progress reports."""
