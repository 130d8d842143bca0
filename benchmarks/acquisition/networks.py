"""Small networks and losses for the published code; they know about capsules, which that code does not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.acquisition.data import FlatData
from trm_core.data.fields import IGNORE_LABEL

DROPOUT = 0.3  # as published for tables and digits, like the two hidden layers
HIDDEN = range(16, 2049, 8)


def mlp(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    """The published architecture for tables: two hidden layers with dropout."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(DROPOUT),
        nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(DROPOUT),
        nn.Linear(hidden, outputs),
    )  # fmt: skip


class RevealedSketches(nn.Module):
    """A mask layer whose first `free` features are never masked; `grouped` (theirs) masks the rest."""

    def __init__(self, grouped: nn.Module, free: int) -> None:
        super().__init__()
        self.grouped, self.free = grouped, free
        self.mask_size = int(grouped.mask_size)  # type: ignore[arg-type]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, F], mask [B, k] -> [B, F + k]: the free features, the masked ones, the mask."""
        return torch.cat([x[:, : self.free], self.grouped(x[:, self.free :], mask)], 1)


class Chooser(nn.Module):
    """Scores the capsules [B, k]; padding comes last."""

    def __init__(self, body: nn.Module, padding_at: slice) -> None:
        super().__init__()
        self.body, self.padding_at = body, padding_at

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs) - 1e6 * inputs[:, self.padding_at]


class CrossEntropy(nn.Module):
    """Cross-entropy of logits [B, V] against [B], or [B, k, V] against [B, k]: the mean over a row's labelled answers.

    `per_row`: [B] instead of the mean over rows.
    """

    def __init__(self, per_row: bool = False) -> None:
        super().__init__()
        self.per_row = per_row

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        classes = logits.shape[-1]
        loss = nn.functional.cross_entropy(
            logits.reshape(-1, classes), labels.reshape(-1), ignore_index=IGNORE_LABEL, reduction="none"
        )
        rows = row_mean(loss.reshape(labels.shape), labels)
        return rows if self.per_row else rows.mean()


class Accuracy(nn.Module):
    """Mean over rows of the share of right answers."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return row_accuracy(logits, labels).mean()


def row_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """[B] share of right answers."""
    return row_mean((logits.argmax(-1) == labels).float(), labels)


def row_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """[B] largest probability, averaged over the labelled answers of a row (`labels` only says which those are)."""
    return row_mean(logits.softmax(-1).amax(-1), labels)


def row_mean(values: Tensor, labels: Tensor) -> Tensor:
    """[B] mean of [B] or [B, k] over the labelled answers."""
    if values.dim() == 1:
        return values
    counted = (labels != IGNORE_LABEL).float()
    return (values * counted).sum(1) / counted.sum(1).clamp(min=1.0)


def answers(data: FlatData) -> int:
    return 1 if data.train.y.dim() == 1 else data.train.y.shape[1]


def build(data: FlatData, hidden: int) -> tuple[nn.Module, nn.Module]:
    """(chooser, predictor), whose input is the masked row with its mask."""
    inputs = data.train.x.shape[1] + data.num_capsules
    chooser = Chooser(mlp(inputs, data.num_capsules, hidden), data.padding_at)
    predictor = mlp(inputs, answers(data) * data.num_classes, hidden)
    if answers(data) > 1:
        predictor.append(nn.Unflatten(1, (answers(data), data.num_classes)))
    return chooser, predictor


def parameters(*networks: nn.Module) -> int:
    return sum(p.numel() for network in networks for p in network.parameters())


def width_for(data: FlatData, wanted: int) -> int:
    """The hidden width (a multiple of 8) at which chooser and predictor have about `wanted` parameters together."""
    with torch.device("meta"):
        return min(HIDDEN, key=lambda hidden: abs(parameters(*build(data, hidden)) - wanted))
