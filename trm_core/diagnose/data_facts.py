"""Facts about a capsule file, computed from a sample: labels, detail, duplicates, and what a linear probe finds.

The amount read is bounded whatever the file's size: a fraction of a second, or some seconds where a row has tens of
kilobytes. `trm inspect-dataset` reads everything and passes on what it counted. Imports no torch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from trm_core.data.fields import IGNORE_LABEL
from trm_core.data.puzzles.reader import PuzzleData
from trm_core.data.store import CapsuleFile, open_capsules
from trm_core.diagnose.cases import MOST_CASES, Cases, cases_of
from trm_core.diagnose.copies import Copies, Labelled, near_copies, row_hashes, shared_copies
from trm_core.diagnose.leak import Betrayal, Leak, betrayal_of, leak_of
from trm_core.diagnose.linear_probe import (
    Stretch,
    broken_stretch,
    right_elsewhere,
    right_in_folds,
    told_apart,
    told_apart_within,
)
from trm_core.diagnose.resemblance import (
    Fit,
    Shift,
    fit_by_stretch,
    fits_elsewhere,
    projected,
    shift_between,
    shift_by_chance,
    told_by_sketches,
)
from trm_core.diagnose.statistics import among, distinct
from trm_core.errors import DataError

_COORDINATES = 400  # of each sample, whose scale is compared; up to twice as many
_BYTES = 24 << 20  # read from each split to look for twins
_MAX_CLASSES = 64
_NEIGHBOURS = 500  # consecutive rows
_MOST_LABELS = 200_000
_MOST = 1e18  # its square still fits a float32
# What else there is needs only training.
_OF_THE_HELD_OUT = ("labels", "twins", "carried_over", "shift", "probe_held_out", "betrayal")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ProbeAccuracies:
    """Cross-validated accuracies of a ridge classifier, 0 to 1, and the number of cases that they rest on."""

    sketches: float
    detail: float | None  # from sketches and children
    chance: float
    cases: int
    broken: Stretch | None = None  # where the better of the two probes fails


@dataclass(frozen=True)
class Twins:
    """Duplicates among the held-out samples that were read. `equal`: share of those that equal a training sample;
    `copies`: those that nearly equal one; `shared`: those that share half of their capsules with one; `elsewhere`: for
    each other held-out split, by name, the share that is also in it, if all samples were compared.
    """

    equal: float
    copies: Copies = field(default_factory=Copies)
    shared: Copies = field(default_factory=Copies)
    elsewhere: Mapping[str, float] = field(default_factory=dict)


class DataFacts:
    """Facts about one capsule file, each computed when it is first used."""

    def __init__(self, path: Path, held_out: str | None = None, across: Mapping[str, int] | None = None) -> None:
        """held_out: the split that the run evaluates. across: how many rows of a split also occur in another one, in
        the form of `Inspection.across_splits`, if all rows were compared. Raises DataError if the file cannot be
        opened.
        """
        self.capsules: CapsuleFile = open_capsules(path)
        self._across = across
        self.take(self.capsules, held_out)

    def take(self, file: CapsuleFile | PuzzleData, held_out: str | None) -> None:
        """Set up what capsule files and puzzle folders have in common."""
        self.file = file
        rows = file.rows
        usual = next((name for name in ("validation", "test") if rows.get(name)), None)
        self.held_out = held_out if held_out and rows.get(held_out) else usual
        self._samples: dict[str, dict[str, np.ndarray]] = {}
        self._known_cases: dict[str, Cases] = {}

    def beside(self, held_out: str) -> Self:
        """The same file with another held-out split. What is already known about training is kept."""
        other = copy.copy(self)
        other.held_out = held_out
        for name in _OF_THE_HELD_OUT:
            other.__dict__.pop(name, None)
        return other

    @cached_property
    def labels(self) -> dict[str, NDArray[np.int64]]:
        """Valid labels of the training split and of the held-out split, flattened."""
        found = {}
        for split in ("train", self.held_out):
            if split is not None and self.file.rows.get(split) and self.file.has("labels"):
                read = self._read(split, slice(0, _MOST_LABELS), ["labels"])["labels"].astype(np.int64).ravel()
                found[split] = read[read != IGNORE_LABEL]
        return found

    @property
    def chance(self) -> float | None:
        """Accuracy on the held-out split (without one, on training) of always giving training's most frequent label."""
        train = self.labels.get("train")
        if train is None or not len(train):
            return None
        values, counts = np.unique(train, return_counts=True)
        judged = self.labels.get(self.held_out or "train", train)
        return float(np.mean(judged == values[counts.argmax()])) if len(judged) else None

    @property
    def top_share(self) -> float | None:
        """Share of the most frequent training label."""
        train = self.labels.get("train")
        return None if train is None or not len(train) else float(np.bincount(train).max() / len(train))

    @property
    def visits(self) -> float:
        """How often this data is drawn relative to others that are mixed in, before the config's weights."""
        return 1.0

    @property
    def classes_that_occur(self) -> int:
        """Number of distinct classes among the training labels."""
        return len(distinct(self.labels.get("train", np.zeros(0, np.int64))))

    @property
    def label_spread(self) -> float:
        """Entropy of the training labels, divided by that of as many equally frequent classes; 0 to 1."""
        train = self.labels.get("train")
        if train is None or self.classes_that_occur < 2:
            return 0.0
        shares = np.bincount(train) / len(train)
        shares = shares[shares > 0]
        return float(-(shares * np.log(shares)).sum() / math.log(len(shares)))

    @property
    def training_rows(self) -> dict[str, np.ndarray]:
        """A bounded number of rows, spread evenly over the training split: sketches, and children, labels and mask if
        the file has them.
        """
        return self._sample("train")

    @property
    def held_out_rows(self) -> dict[str, np.ndarray]:
        """The same of the held-out split; empty without one."""
        return {} if self.held_out in (None, "train") else self._sample(str(self.held_out))

    @cached_property
    def detail(self) -> float | None:
        """RMS distance of children from their own sketch, relative to their RMS. None without children."""
        sample = self._sample("train")
        if "children" not in sample:
            return None
        children, sketches = sample["children"].astype(float), sample["sketches"].astype(float)[:, :, None]
        size = float(np.sqrt(np.mean(children**2)))
        return float(np.sqrt(np.mean((children - sketches) ** 2))) / size if size else 0.0

    @cached_property
    def blank(self) -> float | None:
        """Share of the real (not padded) capsules whose children are all zero. None without children."""
        sample = self._sample("train")
        if "children" not in sample:
            return None
        zero: NDArray[np.bool_] = ~np.any(sample["children"] != 0, axis=(2, 3))
        return float(zero[sample["mask"]].mean()) if "mask" in sample else float(zero.mean())

    @cached_property
    def filler(self) -> float | None:
        """Share of the capsules whose children equal, bit for bit, the most frequent ones at their position. None
        without children. A position whose children take only a few values counts as 0.
        """
        sample = self._sample("train")
        if "children" not in sample:
            return None
        children = sample["children"]
        shares = []
        for place in range(children.shape[1]):
            chosen = children[:, place] if "mask" not in sample else children[sample["mask"][:, place], place]
            if len(chosen) > 1:
                counts = np.unique(row_hashes([chosen]), return_counts=True)[1]
                others = len(chosen) - counts.max()
                # A column of categories has few values, one of which may well be frequent.
                shares.append(counts.max() / len(chosen) if len(counts) - 1 >= 0.3 * others else 0.0)
        return float(np.mean(shares)) if shares else 0.0

    @cached_property
    def twins(self) -> Twins:
        """Held-out samples that are also training samples, among the rows that are read from both splits."""
        if self.held_out is None or not self.file.rows.get("train"):
            return Twins(0.0)
        digests, features, capsules, labels = [], [], [], []
        for split in ("train", self.held_out):
            fields = [name for name in ("sketches", "children", "mask") if self.file.has(name)]
            count = min(max(1, _BYTES // self._row_bytes(fields)), 20_000)
            read = self._read(split, slice(0, count), fields)
            if self.file.has("labels") and self.file.label_rank == 1:
                labels.append(self._read(split, slice(0, count), ["labels"])["labels"].astype(np.int64))
            digests.append(row_hashes(read.values()))
            flat = [projected(read[name].reshape(len(digests[-1]), -1)) for name in fields if name != "mask"]
            features.append(np.concatenate(flat, axis=1))
            shape = read["sketches"].shape[:2]
            each = [read[name].reshape(shape[0] * shape[1], -1) for name in fields if name != "mask"]
            capsules.append(row_hashes(each).reshape(shape))
        equal = float(among(digests[1], digests[0]).mean()) if len(digests[1]) else 0.0
        if self._across is not None:
            equal = self._counted("train")
        known = Labelled(labels[0], labels[1]) if labels else None
        near = near_copies(features[0], features[1], known)
        others = [name for name in self.file.rows if name not in ("train", self.held_out)]
        elsewhere = {name: share for name in others if (share := self._counted(name))}
        return Twins(equal, near, shared_copies(capsules[0], capsules[1], known), elsewhere)

    def _counted(self, split: str) -> float:
        """Share of the held-out samples that also occur in this earlier split; 0 if that was not counted."""
        counted = (self._across or {}).get(f"{split}/{self.held_out}", 0)
        return counted / max(self.file.rows[str(self.held_out)], 1)

    @cached_property
    def repeated(self) -> float:
        """Share of the training samples that repeat another one bit for bit; in a large file, of the first 100 MB."""
        fields = [name for name in ("sketches", "children") if self.file.has(name)]
        rows = self.file.rows.get("train", 0)
        if not rows or not fields:
            return 0.0
        count = min(rows, max(1, 4 * _BYTES // self._row_bytes(fields)))
        hashes = row_hashes(self._read("train", slice(0, count), fields).values())
        return 1 - len(distinct(hashes)) / count

    @cached_property
    def told(self) -> float:
        """Share of the capsules whose children follow from sketches; see `told_by_sketches`. 0 without children."""
        sample = self._sample("train")
        return told_by_sketches(sample["sketches"], sample["children"]) if "children" in sample else 0.0

    @cached_property
    def placed(self) -> Fit | None:
        """Whether children lie under their own sketches: see `fits_elsewhere`. None if there is too little to tell."""
        rows = self.file.rows.get("train", 0)
        if not self.file.has("children") or rows < 60:
            return None
        fields = ["sketches", "children"]
        count = min(rows, _NEIGHBOURS, max(60, _BYTES // self._row_bytes(fields)))
        first = (rows - count) // 2
        read = self._read("train", slice(first, first + count), fields)
        return fits_elsewhere(read["sketches"], read["children"])

    @cached_property
    def placed_by_stretch(self) -> tuple[float, float]:
        """`fit_by_stretch` of samples spread evenly over the training split."""
        sample = self._sample("train")
        return fit_by_stretch(sample["sketches"], sample["children"])

    @cached_property
    def told_by_children(self) -> float | None:
        """Cross-validated accuracy of a probe that sees only children, minus that of chance."""
        cases = self._cases("train")
        labels = cases.labels
        if cases.detail is None or len(labels) < 60 or not 2 <= len(distinct(labels)) <= _MAX_CLASSES:
            return None
        return float(right_in_folds(cases.detail, labels).mean() - np.bincount(labels).max() / len(labels))

    @cached_property
    def carried_over(self) -> tuple[float, float, int] | None:
        """Of a probe learned from training samples: its accuracy on held-out samples, its accuracy within the training
        samples (cross-validated), and the number of held-out cases. None where a probe cannot tell.
        """
        if self.probe is None or self.held_out in (None, "train"):
            return None
        own, other = self._cases("train"), self._cases(str(self.held_out))
        if len(other.labels) < 60:
            return None
        pairs = [(own.closed, other.closed)]
        if own.opened is not None and other.opened is not None:
            pairs.append((own.opened, other.opened))
        inside = [self.probe.sketches, self.probe.detail or 0.0][: len(pairs)]
        best = int(np.argmax(inside))
        x, z = pairs[best]
        return right_elsewhere(x, own.labels, z, other.labels), inside[best], len(other.labels)

    @cached_property
    def shift(self) -> dict[str, Shift]:
        """For sketches and for children, how the held-out split differs from training."""
        if self.held_out in (None, "train"):
            return {}
        train, other = self._sample("train"), self._sample(str(self.held_out))
        return {
            name: shift_between(*(projected_less(sample[name]) for sample in (train, other)))
            for name in ("sketches", "children")
            if name in train and name in other and min(len(train[name]), len(other[name])) >= 50
        }

    def shift_by_chance(self, name: str) -> float:
        """For sketches or children, how far apart random splits of these sizes can be."""
        train, other = self._sample("train"), self._sample(str(self.held_out))
        return shift_by_chance(projected_less(train[name]), projected_less(other[name]))

    @property
    def unseen(self) -> float | None:
        """Share of the held-out labels that no training sample has. None if not all training labels were read."""
        train, other = self.labels.get("train"), self.labels.get(self.held_out or "")
        if train is None or other is None or not len(other) or self.file.rows["train"] > _MOST_LABELS:
            return None
        return float((~among(other, train)).mean())

    @cached_property
    def probe(self) -> ProbeAccuracies | None:
        """Cross-validated within the training split."""
        return self._probe("train")

    @cached_property
    def probe_held_out(self) -> ProbeAccuracies | None:
        """Cross-validated within the held-out split."""
        return None if self.held_out is None else self._probe(self.held_out)

    @cached_property
    def told_apart(self) -> float:
        """How well a probe of sketches and children separates the classes of training samples; see `told_apart`."""
        cases = self._cases("train")
        return told_apart(cases.opened or cases.closed, cases.labels)

    @cached_property
    def betrayal(self) -> Betrayal | None:
        """A dimension of the sketches that tells the label in training alone; None if there is none, or too little to
        compare.
        """
        if self.held_out in (None, "train"):
            return None
        own, other = self._cases("train"), self._cases(str(self.held_out))
        classes = max(len(distinct(own.labels)), len(distinct(other.labels)))
        if min(len(own.labels), len(other.labels)) < 60 + classes or not 2 <= classes <= _MAX_CLASSES:
            return None
        return betrayal_of((own.sketches, own.labels), (other.sketches, other.labels), self.file.dim)

    @cached_property
    def leak(self) -> Leak | None:
        """What single coordinates of the sketches give away of the label; None if there is nothing to measure."""
        cases = self._cases("train")
        sketches, labels = cases.sketches, cases.labels
        if not 2 <= len(distinct(labels)) <= _MAX_CLASSES or len(labels) < 50:
            return None
        return leak_of(sketches, labels, self.file.dim)

    def _sample(self, split: str) -> dict[str, np.ndarray]:
        """Up to MOST_CASES samples, spread evenly over the split without the builder's augmented copies. Read once."""
        if split not in self._samples:
            self._samples[split] = self._read_sample(split)
        return self._samples[split]

    def _read_sample(self, split: str) -> dict[str, np.ndarray]:
        rows = self.file.rows.get(split, 0)
        if split == "train":
            copies = self.capsules.manifest.get("augmented_rows", 0)  # they come last
            rows -= copies if isinstance(copies, int) and 0 <= copies < rows else 0
        fields = [name for name in ("sketches", "children", "labels", "mask") if self.file.has(name)]
        if not rows:
            return {}
        count = min(rows, MOST_CASES, max(1, 4 * _BYTES // self._row_bytes(fields)))
        index = np.linspace(0, rows - 1, count).astype(np.int64)
        return self._read(split, index, fields) | {"rows": index}

    def _read(self, split: str, rows: slice | np.ndarray, fields: Sequence[str]) -> dict[str, np.ndarray]:
        """Raises DataError for values whose squares cannot be summed, and for labels that are not a class."""
        read = self.capsules.read(split, rows, fields)
        most = self.file.num_classes or math.inf
        for name, values in read.items():
            if values.dtype.kind == "f" and not float(np.abs(values).max(initial=0)) < _MOST:
                raise DataError(f"{self.file.path}: {split}/{name} holds NaN, infinity or numbers past {_MOST:g}")
            if name == "labels":
                wrong = ((values < 0) & (values != IGNORE_LABEL)) | (values >= most)
                if bool(wrong.any()):
                    raise DataError(f"{self.file.path}: {split}/labels holds {values[wrong][0]}, which is not a class")
        return read

    def _row_bytes(self, fields: list[str]) -> int:
        layout = self.capsules.layout
        return sum(math.prod(layout.row_shape(name)) * np.dtype(layout.dtypes[name]).itemsize for name in fields)

    def _cases(self, split: str) -> Cases:
        if split not in self._known_cases:
            self._known_cases[split] = cases_of(self._sample(split))
        return self._known_cases[split]

    def _probe(self, split: str) -> ProbeAccuracies | None:
        cases = self._cases(split)
        labels = cases.labels
        if len(labels) < 60 or not 2 <= len(distinct(labels)) <= _MAX_CLASSES:
            return None
        features = [cases.closed, *([] if cases.opened is None else [cases.opened])]
        right = [right_in_folds(blocks, labels) for blocks in features]
        best = int(np.argmax([one.mean() for one in right]))
        chance = float(np.bincount(labels).max() / len(labels))
        broken = broken_stretch(right[best], labels, chance)
        if broken is not None and told_apart_within(broken, features[best], labels) > 0.65:
            broken = None
        if broken is not None:
            broken = broken.in_file(cases.rows, self.file.rows[split])
        return ProbeAccuracies(
            float(right[0].mean()),
            float(right[1].mean()) if len(right) > 1 else None,
            chance,
            len(labels),
            broken,
        )


def projected_less(values: np.ndarray) -> np.ndarray:
    """[n, ...] -> [n, F]: every k-th coordinate where there are many. A random projection would hide their scales."""
    flat = values.reshape(len(values), -1)
    return flat[:, :: max(1, flat.shape[1] // _COORDINATES)]
