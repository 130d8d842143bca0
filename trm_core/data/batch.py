"""One batch of rows as tensors, of capsules or puzzles: what every stream yields and every model reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """One process's share of the batches: every `of`-th one, beginning with batch `number`."""

    number: int = 0
    of: int = 1

    def starts(self, rows: int, batch_size: int) -> range:
        """The first row of each batch in this share."""
        return range(self.number * batch_size, rows, self.of * batch_size)


WHOLE = Part()


@dataclass
class CapsuleBatch:
    """n rows of a split."""

    sketches: Tensor  # [n, k, D] float32; puzzles: [n, k] int64 tokens
    children: Tensor | None  # [n, k, m, D] float32
    checksums: Tensor | None  # [n, k, R] float32
    labels: Tensor  # [n] or [n, k] int64; all -100 where the file has none
    parents: Tensor | None  # [n, k] int64
    mask: Tensor | None  # [n, k] bool; true: a real capsule
    modality: Tensor | None  # [n] int64
    rows: Tensor  # [n] int64: row number within its split
    puzzles: Tensor | None = None  # [n] int64: identifiers of puzzles

    def to(self, device: torch.device | str) -> CapsuleBatch:
        """The batch on another device."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return CapsuleBatch(
            sketches=self.sketches.to(device, non_blocking=True),
            children=move(self.children),
            checksums=move(self.checksums),
            labels=self.labels.to(device, non_blocking=True),
            parents=move(self.parents),
            mask=move(self.mask),
            modality=move(self.modality),
            rows=self.rows.to(device, non_blocking=True),
            puzzles=move(self.puzzles),
        )

    def select(self, index: Tensor) -> CapsuleBatch:
        """The rows with these indices [n]."""

        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[index]

        return CapsuleBatch(
            sketches=self.sketches[index],
            children=pick(self.children),
            checksums=pick(self.checksums),
            labels=self.labels[index],
            parents=pick(self.parents),
            mask=pick(self.mask),
            modality=pick(self.modality),
            rows=self.rows[index],
            puzzles=pick(self.puzzles),
        )

    def __len__(self) -> int:
        return len(self.sketches)
