"""Capsules as flat feature vectors with groups, for methods that know features rather than capsules.

A row is [sketches k*D | padding k | children k*m*D]. The first two parts are free (every method sees them); the
children of each capsule form one group that is bought together. Checksums are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trm_core.data.fields import IGNORE_LABEL
from trm_core.data.store import CapsuleFile
from trm_core.errors import DataError

HELD_OUT = 0.2


@dataclass(frozen=True)
class Flat:
    """Rows of one split. N rows, F = k*D + k + k*m*D features."""

    x: Tensor  # [N, F] float32
    y: Tensor  # [N] or [N, k] int64
    real: Tensor  # [N, k] bool: capsules that are not padding


@dataclass(frozen=True)
class FlatData:
    """The data on which a baseline is trained and evaluated."""

    train: Flat
    held_out: Flat  # for early stopping
    test: Flat
    num_capsules: int
    dim: int
    num_children: int
    num_classes: int
    held_out_from: str

    @property
    def free(self) -> int:
        """Number of features that are always seen."""
        return self.num_capsules * (self.dim + 1)

    @property
    def padding_at(self) -> slice:
        """The position of the padding marks in a row."""
        return slice(self.num_capsules * self.dim, self.free)

    @property
    def group_matrix(self) -> Tensor:
        """[k, k*m*D] of 0 and 1: which paid features belong to which capsule."""
        return torch.eye(self.num_capsules).repeat_interleave(self.num_children * self.dim, 1)


def flat_data(file: CapsuleFile, split: str, seed: int) -> FlatData:
    """The file's rows, standardised by the training rows. Early stopping uses `validation` unless that split is the one
    evaluated, otherwise a fifth of the training sources (copies of one source stay together).

    Raises DataError for a file without children.
    """
    if not file.num_children:
        raise DataError(f"{file.path}: has no children, so there is nothing to acquire")
    train, test = read(file, "train"), read(file, split)
    if split != "validation" and file.rows.get("validation"):
        held_out, where = read(file, "validation"), "validation split"
    else:
        source = file.read("train", slice(None), ["ids"])["ids"] if file.has("ids") else np.arange(file.rows["train"])
        chosen = torch.from_numpy(held_out_rows(source, seed))[labelled(file, "train")]
        train, held_out, where = take(train, ~chosen), take(train, chosen), f"{HELD_OUT:.0%} of the training sources"
    keep = file.num_capsules * file.dim, file.num_capsules * (file.dim + 1)  # padding marks stay 0 and 1
    mean, deviation = train.x.mean(0), train.x.std(0).clamp(min=1e-3)
    mean[slice(*keep)], deviation[slice(*keep)] = 0.0, 1.0
    train, held_out, test = (Flat((s.x - mean) / deviation, s.y, s.real) for s in (train, held_out, test))
    assert file.num_classes is not None
    return FlatData(
        train, held_out, test, file.num_capsules, file.dim, file.num_children, file.num_classes, where
    )  # fmt: skip


def held_out_rows(source: np.ndarray, seed: int) -> np.ndarray:
    """[N] bool: the rows of a fifth of the distinct sources."""
    distinct = np.unique(source)
    np.random.default_rng(seed).shuffle(distinct)
    return np.isin(source, distinct[: max(1, round(HELD_OUT * len(distinct)))])


def labelled(file: CapsuleFile, split: str) -> Tensor:
    """[N] bool: rows with a label."""
    labels = file.read(split, slice(None), ["labels"])["labels"]
    return torch.from_numpy((labels.reshape(len(labels), -1) != IGNORE_LABEL).any(1))


def read(file: CapsuleFile, split: str) -> Flat:
    """The labelled rows of a split."""
    fields = ["sketches", "children", "labels", *(["mask"] if file.has("mask") else [])]
    arrays = file.read(split, slice(None), fields)
    rows = len(arrays["labels"])
    real = arrays.get("mask", np.ones((rows, file.num_capsules), bool))
    # Our model sees nothing of a padded capsule either.
    children = arrays["children"].reshape(rows, file.num_capsules, -1) * real[:, :, None]
    parts = [arrays["sketches"].reshape(rows, -1), ~real, children.reshape(rows, -1)]
    x = torch.from_numpy(np.concatenate([part.astype(np.float32) for part in parts], 1))
    flat = Flat(x, torch.from_numpy(arrays["labels"].astype(np.int64)), torch.from_numpy(real))
    return take(flat, labelled(file, split))


def take(flat: Flat, rows: Tensor) -> Flat:
    return Flat(flat.x[rows], flat.y[rows], flat.real[rows])
