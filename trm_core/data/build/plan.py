"""The first pass over the sources: how many samples, which are duplicates, which labels, which split each goes to.

Per sample it holds 8 bytes of digest, a label code, a split code and the name of its group, and nothing else of the
source.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trm_core.config.schema import BuildConfig
from trm_core.data.build.label_doubts import say_doubts
from trm_core.data.build.modality import Modality
from trm_core.data.build.records import NO_LABELS, Log, Progress, Record, class_text, label_order
from trm_core.data.build.splits import TEST, TRAIN, assign_splits, duplicate_groups
from trm_core.data.fields import IGNORE_LABEL, SPLITS
from trm_core.errors import DataError

_SALT = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Classes:
    """The classes that labels stand for. `names`: None where they are plain numbers."""

    count: int
    names: list[str] | None


@dataclass
class Plan:
    """What the scan found. Rows are numbered over all modalities and readers, in order.

    split: int8 [rows]; labels: int64 [rows] of class ids (-100 for none), or None where targets are concepts or come
    with the arrays; starts: first row of each modality, and the total; source_rows: samples of each source, in order.
    """

    split: np.ndarray
    labels: np.ndarray | None
    class_names: list[str] | None
    starts: list[int]
    source_rows: list[int]
    duplicates: int
    groups: np.ndarray | None = None  # int64 [rows]: rows with the same number share a split; None: only duplicates do
    num_classes: int | None = None  # where another file determines it

    @property
    def rows(self) -> int:
        return self.starts[-1]

    @property
    def label_rank(self) -> int:
        return 1 if self.labels is not None else 2


def make_plan(
    modalities: list[Modality], config: BuildConfig, progress: Progress, log: Log, known: Classes | None = None
) -> Plan:
    """Scan every source once. known: classes of another file, for whose model all rows are held out. Raises `DataError`
    for no samples, labels that are all the same, or labels in only some sources.
    """
    digests, codes = array("Q"), array("q")
    names: dict[str, int] = {}
    named: list[str | None] = []
    starts, source_rows = [0], []
    for number, modality in enumerate(modalities):
        for reader in modality.readers:
            before = len(digests)
            for record in reader.records(digests=True):
                # Samples of different kinds are never duplicates of each other.
                digests.append((record.digest + number * _SALT) & _MASK)
                codes.append(-1 if record.label is None else names.setdefault(record.label, len(names)))
                named.append(record.group)
                if len(digests) % 256 == 0:
                    progress("scan", len(digests), 0)
            if len(digests) == before:
                raise DataError(f"{reader.path}: holds no samples", hint="check that this is the right file or folder")
            source_rows.append(len(digests) - before)
        starts.append(len(digests))
    progress("scan", len(digests), len(digests))
    labelled = _all_labelled(modalities)
    digest_array = np.frombuffer(digests, dtype=np.uint64)
    raw = np.frombuffer(codes, dtype=np.int64)
    together = duplicate_groups(digest_array, named)
    if known is None:
        split = assign_splits(raw if labelled else None, together, config, log)
    else:
        split = np.full(len(raw), TEST, dtype=np.int8)
    duplicates = len(digest_array) - len(np.unique(digest_array))
    if duplicates:
        log(f"{duplicates} of {len(raw)} samples repeat an earlier one; each stays in the split of its twin")
    if known is not None and (known.names is not None) != labelled:
        raise DataError(
            f"{modalities[0].paths[0]}: has no labels to compare answers with"
            if known.names is not None
            else f"{modalities[0].paths[0]}: its labels are not those of data.build.encoders_of={config.encoders_of}",
            hint="name the labels with data.build.label; samples without any are for trm predict",
        )
    if labelled:
        say_doubts(list(names), raw, digest_array, log)
    given = None if known is None else known.names
    labels, class_names = _class_ids(raw, list(names), split, log, given) if labelled else (None, None)
    count = None if known is None else known.count
    groups = together if any(name is not None for name in named) else None
    return Plan(split, labels, class_names, starts, source_rows, duplicates, groups, count)


def stream(modality: Modality, expected: int) -> Iterator[Record]:
    """The records of a modality again, without digests. Raises `DataError` if there are not as many as in the scan."""
    count = 0
    for reader in modality.readers:
        for record in reader.records(digests=False):
            count += 1
            yield record
    if count != expected:
        paths = ", ".join(reader.path for reader in modality.readers)
        raise DataError(
            f"{paths}: held {expected} samples at first and {count} later", hint="do not change it meanwhile"
        )


def _all_labelled(modalities: list[Modality]) -> bool:
    if any(modality.encoder.label_rank == 2 for modality in modalities):
        if len(modalities) > 1:
            raise DataError("arrays with a label per capsule cannot be mixed with other kinds")
        return False
    readers = [reader for modality in modalities for reader in modality.readers]
    without = [reader.path for reader in readers if not reader.has_labels]
    if without and len(without) < len(readers):
        raise DataError(
            f"{without[0]}: has no labels, but another source has",
            hint="name its label column with data.build.label, or build the files separately",
        )
    return not without


def _class_ids(
    raw: np.ndarray, names: list[str], split: np.ndarray, log: Log, given: list[str] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Class ids in the sorted order of the names in the training split, or of those `given`; other names become -100,
    with a log line.
    """
    seen = np.unique(raw[(split == TRAIN) & (raw >= 0)])
    known = label_order({names[code] for code in seen}) if given is None else given
    if len(known) < 2:
        only = f"all {known[0]!r}" if known else "missing"
        raise DataError(
            f"the labels of the training split are {only}: there is nothing to learn",
            hint=f"check the label column, or predict concepts: --label {NO_LABELS} (data.build.label={NO_LABELS})",
        )
    labelled = int((raw >= 0).sum())
    if given is None and len(known) > max(20, labelled // 2):
        raise DataError(
            f"the label has {len(known)} different values in {labelled} samples (such as {known[0]!r}): not a class",
            hint="choose a column of classes with data.build.label, or bin the numbers first",
        )
    # First as `class_text` writes them, for files from before it, then as they are.
    ids = {class_text(name): number for number, name in enumerate(known)} | {
        n: number for number, n in enumerate(known)
    }
    table = np.asarray([ids.get(name, IGNORE_LABEL) for name in names] + [IGNORE_LABEL], dtype=np.int64)
    labels = table[raw]  # a missing label has code -1: the last entry
    unknown = sorted(set(names) - set(known))
    if unknown:
        for code in (1, 2):
            lost = int(((labels == IGNORE_LABEL) & (raw >= 0) & (split == code)).sum())
            if lost:
                log(
                    f"{lost} {SPLITS[code]} samples have a label that is not in the training split ({unknown[0]!r}, "
                    "...): not scored"
                )
    for code in (1, 2) if given is None else ():
        there = np.bincount(labels[(split == code) & (labels >= 0)], minlength=len(known)) > 0
        if there.any() and not there.all():
            absent = [name for name, found in zip(known, there, strict=True) if not found]
            others = f", nor {len(absent) - 1} other labels" if len(absent) > 1 else ""
            log(f"no {SPLITS[code]} sample has the label {absent[0]!r}{others}")
    if missing := int((raw < 0).sum()):
        log(f"{missing} samples have no label: they are kept and never scored")
    return labels, known
