"""GDFS and DIME, trained and run with their authors' code from a folder on disk.

GDFS: Covert et al. 2023, "Learning to Maximize Mutual Information for Dynamic Feature Selection", repository
iancovert/dynamic-selection. DIME: Gadgil et al. 2024, "Estimating Conditional Mutual Information for Dynamic Feature
Selection", repository suinleelab/DIME.
Only the networks, the masking that leaves sketches free, the loaders and the evaluation of their answers are ours. The
settings are those of their experiments on tables and digits (written out below).
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.acquisition.curves import Curve, Point
from benchmarks.acquisition.data import Flat, FlatData
from benchmarks.acquisition.networks import build, parameters, row_accuracy, row_confidence, width_for

CONFIDENCES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.9999)
BATCH, PREDICT_BATCH = 128, 1024


class DidNotInstall(Exception):
    """Their package cannot be imported here."""


@dataclass(frozen=True)
class FieldOptions:
    """How the field's methods are trained."""

    seed: int
    like: int  # number of parameters of our model, which theirs should match
    cap_seconds: float = 900.0  # wall clock of one training: of the pretraining, and of the joint training
    epochs: int | None = None  # None: as published
    hidden: int | None = None  # None: as many parameters as our model
    max_features: int | None = None  # selections per training row; None: all capsules


@dataclass
class Trained:
    """The result of a method: its curves, the accuracy of its predictor on everything, and how it was trained."""

    curves: list[Curve]
    everything: float
    facts: dict[str, Any]


def import_package(path: Path, name: str) -> ModuleType:
    """Import `name` from the repository folder `path`. Raises DidNotInstall with the reason."""
    if not (path / name / "__init__.py").is_file():
        raise DidNotInstall(f"{path} holds no package {name}")
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    try:
        return importlib.import_module(name)
    except (ImportError, AttributeError) as error:  # a missing dependency, or one that has dropped what they use
        raise DidNotInstall(f"import {name}: {type(error).__name__}: {error}") from error


@contextmanager
def plateau_that_takes_verbose() -> Iterator[None]:
    """Let torch's plateau schedule accept `verbose`, which their code passes and newer versions of torch reject."""
    original = torch.optim.lr_scheduler.ReduceLROnPlateau

    class Plateau(original):  # type: ignore[valid-type, misc]
        def __init__(self, *arguments: Any, verbose: bool = False, **options: Any) -> None:
            super().__init__(*arguments, **options)

    torch.optim.lr_scheduler.ReduceLROnPlateau = Plateau  # type: ignore[misc]
    try:
        yield
    finally:
        torch.optim.lr_scheduler.ReduceLROnPlateau = original  # type: ignore[misc]


class CappedLoader:
    """A loader that yields nothing more once the time is over. Further epochs then train nothing, so that the early
    stopping of the code that uses it ends training and restores the best networks.
    """

    def __init__(self, loader: DataLoader, seconds: float) -> None:
        self.loader, self.seconds = loader, seconds
        self.began = time.monotonic()
        self.epochs, self.capped = 0, False

    def __iter__(self) -> Iterator[list[Tensor]]:
        for batch in self.loader:
            if time.monotonic() - self.began > self.seconds:
                self.capped = True
                return
            yield batch
        self.epochs += 1


def loaders(data: FlatData) -> tuple[DataLoader, DataLoader]:
    """Training and early-stopping batches, as published: 128 rows, shuffled, the incomplete last one dropped."""
    size = min(BATCH, len(data.train.y))
    train = DataLoader(TensorDataset(data.train.x, data.train.y), batch_size=size, shuffle=True, drop_last=True)
    return train, DataLoader(TensorDataset(data.held_out.x, data.held_out.y), batch_size=PREDICT_BATCH)


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # their exploration draws from numpy's global generator


def networks(data: FlatData, options: FieldOptions) -> tuple[torch.nn.Module, torch.nn.Module, dict[str, Any]]:
    """(chooser, predictor, facts about them)."""
    hidden = options.hidden or width_for(data, options.like)
    chooser, predictor = build(data, hidden)
    facts = {
        "network": f"two MLPs {data.train.x.shape[1] + data.num_capsules}-{hidden}-{hidden}",
        "parameters": parameters(chooser, predictor),
        "parameters_of_ours": options.like,
        "rows": {"train": len(data.train.y), "held out": len(data.held_out.y)},
        "held_out": data.held_out_from,
    }
    return chooser, predictor, facts


def point(setting: float | None, mask: Tensor, logits: Tensor, test: Flat, prices: Tensor) -> Point:
    """The point of a selection `mask` [N, k], in which padding costs nothing."""
    opened = (mask > 0.5) & test.real
    return Point(
        setting=setting,
        opened=float(opened.sum(1).double().mean()),
        spent=float((opened * prices).sum(1).double().mean()),
        accuracy=float(row_accuracy(logits, test.y).double().mean()),
    )


@torch.no_grad()
def random_order(
    family: str, predictor: torch.nn.Module, mask_layer: torch.nn.Module, test: Flat, prices: Tensor
) -> Curve:
    """The curve of the same predictor with capsules opened in a random order, drawn per row."""
    predictor.eval()
    draws = torch.rand(test.real.shape, generator=torch.Generator().manual_seed(0))
    rank = draws.masked_fill(~test.real, 2.0).argsort(1).argsort(1)
    points = []
    for number in range(test.real.shape[1] + 1):
        mask = (rank < number).float()
        points.append(point(number, mask, predictor(mask_layer(test.x, mask)), test, prices))
    return Curve(f"{family}, random order", "reference", family, points)


def stop_when_sure(
    masks: list[Tensor], logits: list[Tensor], test: Flat, prices: Tensor, confidences: tuple[float, ...] = CONFIDENCES
) -> list[Point]:
    """Points of stopping at the first of the growing selections (each [N, k]) whose largest probability reaches a
    level.
    """
    sure = torch.stack([row_confidence(one, test.y) for one in logits], 1)  # [N, k + 1]
    stacked, predicted = torch.stack(masks, 1), torch.stack(logits, 1)
    rows, points = torch.arange(len(sure)), []
    for level in confidences:
        enough = sure >= level
        enough[:, -1] = True
        at = enough.int().argmax(1)
        points.append(point(level, stacked[rows, at], predicted[rows, at], test, prices))
    return points
