"""The last pass: from the encoded chunks of the work directory into one capsule file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trm_core.config.schema import BuildConfig
from trm_core.data.build.chunks import Chunk
from trm_core.data.build.encoders import Layout
from trm_core.data.build.plan import Plan
from trm_core.data.build.records import Log, Progress
from trm_core.data.build.splits import TRAIN
from trm_core.data.build.twins import separate_twins
from trm_core.data.build.work import WorkDir, disk_errors
from trm_core.data.fields import IGNORE_LABEL, SPLITS
from trm_core.data.probe import ProbeSample, measure
from trm_core.data.store.encoder_arrays import EncoderRecord
from trm_core.data.store.writer import CapsuleWriter
from trm_core.errors import DataError

_SMALL = ("split", "digest", "augmented")
_APPEND_BYTES = 4 << 20  # a split's rows are collected up to this size: an append costs more than copying a few rows


@dataclass(frozen=True)
class Target:
    """The task of the file: how its labels are to be read. `known`: where the source labels capsules, the labels that a
    model can learn; others become -100.
    """

    task: str
    num_classes: int
    class_names: list[str] | None
    concepts: int | None
    label_rank: int
    known: np.ndarray | None = None


@dataclass(frozen=True)
class Written:
    counts: dict[str, int]
    expansion_value: dict[str, Any] | None
    target: Target


def write_file(
    out: Path,
    chunks: list[Chunk],
    layout: Layout,
    plan: Plan,
    concepts: int | None,
    prices: np.ndarray | None,
    config: BuildConfig,
    work: WorkDir,
    manifest: dict[str, Any],
    encoders: Sequence[EncoderRecord],
    overwrite: bool,
    progress: Progress,
    log: Log,
) -> Written:
    """Write `out` from the chunks, measure the expansion value on the way, and close the file with its manifest."""
    splits, copies = _final_splits(chunks, plan, work, log)
    originals = _counts(splits, [~flags for flags in copies])
    counts = _counts(splits, [np.ones_like(flags) for flags in copies])
    target = _target(chunks, splits, plan, concepts, work)
    sample = ProbeSample(originals, layout.num_capsules, target.label_rank == 2)
    with (
        disk_errors(out),
        CapsuleWriter(
            out,
            num_capsules=layout.num_capsules,
            dim=layout.dim,
            num_children=layout.num_children,
            checksum_dim=layout.checksum_dim,
            label_rank=1 if target.label_rank == 1 else 2,
            dtype="float16" if layout.dtype == "float16" else "float32",
            with_mask=layout.with_mask,
            with_parents=layout.with_parents,
            with_modality=len(plan.starts) > 2,
            with_ids=True,
            prices=prices,
            encoders=encoders,
            overwrite=overwrite,
        ) as writer,
    ):
        written = dict.fromkeys(counts, 0)
        unknown: dict[str, list[int]] = {name: [] for name in counts}

        def append(name: str, waiting: dict[str, list[dict[str, np.ndarray]]], is_copy: bool) -> None:
            parts, waiting[name] = waiting[name], []
            if not parts:
                return
            rows = {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}
            if target.known is not None:
                labels = rows["labels"]
                strange = (labels >= 0) & ~np.isin(labels, target.known)
                unknown[name] += labels[strange].tolist()
                rows["labels"] = np.where(strange, IGNORE_LABEL, labels)
            writer.append(name, rows)
            if not is_copy:
                sample.offer(name, written[name], rows)
            written[name] += len(rows["ids"])

        # Augmented copies come after all samples of the source, so that whoever measures can leave them out.
        rounds = [False, True] if any(flags.any() for flags in copies) else [False]
        done = 0
        for is_copy in rounds:
            waiting: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in counts}
            for chunk, split, flags in zip(chunks, splits, copies, strict=True):
                fields = work.load_chunk(chunk.index)
                part = {name: values for name, values in fields.items() if name not in _SMALL}
                for code, name in enumerate(SPLITS):
                    own = (split == code) & (flags == is_copy)
                    if own.any():
                        waiting[name].append({field: values[own] for field, values in part.items()})
                        if sum(values.nbytes for rows in waiting[name] for values in rows.values()) >= _APPEND_BYTES:
                            append(name, waiting, is_copy)
                done += 1
                progress("write", done, len(chunks) * len(rounds))
            for name in waiting:
                append(name, waiting, is_copy)
        for name, lost in unknown.items():
            if lost:
                log(
                    f"{len(lost)} {name} capsules have a label that is not in the training split ({lost[0]}, ...): "
                    "not scored"
                )
        progress("probe", 0, 1)
        value = measure(sample)
        progress("probe", 1, 1)
        writer.close(
            manifest
            | {
                "augmented_rows": counts.get("train", 0) - originals.get("train", 0),
                "counts": counts,
                "task": target.task,
                "num_classes": target.num_classes,
                "class_names": target.class_names,
                "concepts": target.concepts,
                "expansion_value": value,
            }
        )
    return Written(counts, value, target)


def _final_splits(
    chunks: list[Chunk], plan: Plan, work: WorkDir, log: Log
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Split code and "is an augmented copy" of every encoded row, one array of each per chunk."""
    small = [work.load_chunk(chunk.index, (*_SMALL, "ids")) for chunk in chunks]
    digest, copies, split, rows = (
        np.concatenate([fields[name] for fields in small]) for name in ("digest", "augmented", "split", "ids")
    )
    result = separate_twins(split, digest, copies, log, None if plan.groups is None else plan.groups[rows])
    ends = np.cumsum([len(fields["split"]) for fields in small])[:-1]
    return np.split(result, ends), np.split(copies, ends)


def _counts(splits: list[np.ndarray], kept: list[np.ndarray]) -> dict[str, int]:
    """Rows of each split that is not empty."""
    flat = np.concatenate([split[flags] for split, flags in zip(splits, kept, strict=True)])
    return {name: int((flat == code).sum()) for code, name in enumerate(SPLITS) if (flat == code).any()}


def _target(chunks: list[Chunk], splits: list[np.ndarray], plan: Plan, concepts: int | None, work: WorkDir) -> Target:
    if plan.class_names is not None:
        return Target("classes", len(plan.class_names), plan.class_names, None, 1)
    if concepts is not None:
        return Target("concepts", concepts + 4, None, concepts, 2)
    if plan.num_classes is not None:
        return Target("classes", plan.num_classes, None, None, 2, np.arange(plan.num_classes))
    # The source labels every capsule: ids stay as they are.
    seen: set[int] = set()
    for chunk, split in zip(chunks, splits, strict=True):
        labels = work.load_chunk(chunk.index, ("labels",))["labels"][split == TRAIN]
        seen |= set(np.unique(labels[labels != IGNORE_LABEL]).tolist())
    if len(seen) < 2:
        raise DataError("the labels of the training split are all alike: there is nothing to learn")
    return Target("classes", max(seen) + 1, None, None, 2, np.asarray(sorted(seen)))
