"""Samples of a capsule file as cases for a linear probe: flat features and labels, without duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trm_core.data.fields import IGNORE_LABEL
from trm_core.diagnose.copies import row_hashes

MOST_CASES = 2000  # used by a probe

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Cases:
    """What a probe learns from: samples, or single capsules where each has its own label.

    sketches [n, F], children [n, G] or None, labels [n], rows [n]: the row of the split that each case comes from.
    mean_sketches [n, d] and mean_children [n, D]: means over the capsules of a sample, for tasks in which position does
    not matter; None where a case is a capsule.
    """

    sketches: Array
    children: Array | None
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]
    mean_sketches: Array | None = None
    mean_children: Array | None = None

    @property
    def closed(self) -> list[Array]:
        """Feature blocks for the probe of sketches."""
        return [self.sketches, *([] if self.mean_sketches is None else [self.mean_sketches])]

    @property
    def detail(self) -> list[Array] | None:
        """Feature blocks for the probe of children alone."""
        if self.children is None:
            return None
        return [self.children, *([] if self.mean_children is None else [self.mean_children])]

    @cached_property
    def opened(self) -> list[Array] | None:
        """Feature blocks for the probe of sketches and children."""
        if self.children is None:
            return None
        means = [mean for mean in (self.mean_sketches, self.mean_children) if mean is not None]
        return [np.concatenate([self.sketches, self.children], axis=1), *means]


def cases_of(sample: dict[str, np.ndarray]) -> Cases:
    """The cases in the fields of some rows, where the field "rows" holds their numbers. No cases without labels."""
    if "labels" not in sample:
        return Cases(np.zeros((0, 1)), None, np.zeros(0, np.int64), np.zeros(0, np.int64))
    # A repeated sample would be judged by a probe that learned from its copies.
    inputs = [sample[name] for name in ("sketches", "children") if name in sample]
    first = np.sort(np.unique(row_hashes(inputs), return_index=True)[1])
    sample = {name: values[first] for name, values in sample.items()}
    sketches, labels = sample["sketches"].astype(float), sample["labels"].astype(np.int64)
    children = sample["children"].astype(float) if "children" in sample else None
    means: tuple[Array | None, Array | None] = (None, None)
    rows = sample["rows"]
    if labels.ndim == 1:
        real = sample["mask"] if "mask" in sample else np.ones(sketches.shape[:2], bool)
        count = np.maximum(real.sum(1), 1)[:, None]
        means = (
            (sketches * real[:, :, None]).sum(1) / count,
            None if children is None else (children.mean(2) * real[:, :, None]).sum(1) / count,
        )
    if labels.ndim == 2:
        per_row = labels.shape[1]
        sketches, labels = sketches.reshape(-1, sketches.shape[-1]), labels.reshape(-1)
        children = None if children is None else children.reshape(len(labels), -1)
        chosen = np.linspace(0, len(labels) - 1, min(len(labels), MOST_CASES)).astype(np.int64)
        sketches, labels, rows = sketches[chosen], labels[chosen], np.repeat(rows, per_row)[chosen]
        children = None if children is None else children[chosen]
    known = labels != IGNORE_LABEL
    flat = (None if values is None else values.reshape(len(labels), -1)[known] for values in (children, *means))
    return Cases(sketches.reshape(len(labels), -1)[known], next(flat), labels[known], rows[known], *flat)
