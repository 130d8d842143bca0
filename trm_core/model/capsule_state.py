"""What the model may see of each sample: all sketches, but the children of opened capsules only.

Puzzles take the same form: each cell is a capsule whose sketch is a token and which has nothing to open.

Built from a batch of the loader, changed only by `opened`, and read by the embedding at every reasoning step. Shapes:
B rows, k capsules, m children, D embedding width, R checksum width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trm_core.model.data_shape import DataShape


@dataclass(frozen=True)
class CapsuleState:
    """Capsules of B rows, and which of them are open."""

    sketches: Tensor  # [B, k, D] float32; puzzles: [B, k] int64 tokens
    children: Tensor | None  # [B, k, m, D] float32
    checksums: Tensor | None  # [B, k, R] float32
    mask: Tensor | None  # [B, k] bool; false where a capsule is padding
    expanded: Tensor  # [B, k] bool
    prices: Tensor = field(metadata={"not_per_row": True})  # [k] float32; cost of opening each capsule
    parents: Tensor | None = None  # [B, k] int64, index of the parent capsule; -1: a root
    puzzles: Tensor | None = None  # [B] int64, identifiers of puzzles

    @staticmethod
    def closed(
        sketches: Tensor,
        children: Tensor | None,
        checksums: Tensor | None,
        mask: Tensor | None,
        prices: Tensor,
        parents: Tensor | None = None,
        puzzles: Tensor | None = None,
    ) -> CapsuleState:
        """A state in which nothing is open yet."""
        expanded = torch.zeros(sketches.shape[:2], dtype=torch.bool, device=sketches.device)
        return CapsuleState(sketches, children, checksums, mask, expanded, prices, parents, puzzles)

    @staticmethod
    def blank(data: DataShape, rows: int, prices: Tensor) -> CapsuleState:
        """Closed capsules of zeros (puzzles: token 0 in every cell), in the shapes that a model for `data` reads."""
        k, device = data.num_capsules, prices.device

        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(rows, k, *sizes, device=device)

        if data.tokens:
            numbers = torch.zeros(rows, dtype=torch.int64, device=device)
            return CapsuleState.closed(zeros().long(), None, None, None, prices, puzzles=numbers)
        return CapsuleState.closed(
            zeros(data.dim),
            zeros(data.num_children, data.dim) if data.num_children else None,
            zeros(data.checksum_dim) if data.checksum_dim else None,
            None,
            prices,
            torch.full((rows, k), -1, device=device) if data.has_parents else None,
        )

    @property
    def rows(self) -> int:
        return self.sketches.shape[0]

    @property
    def spent(self) -> Tensor:
        """[B] what the open capsules cost, in price units."""
        return (self.expanded * self.prices).sum(1)

    @property
    def num_opened(self) -> Tensor:
        """[B] int64, open capsules."""
        return self.expanded.sum(1)

    def finite(self) -> bool:
        """Whether all values of the samples are finite, including those of unopened capsules."""
        given = (self.sketches, self.children, self.checksums)
        return all(bool(values.isfinite().all()) for values in given if values is not None)

    def valid(self) -> Tensor:
        """[B, k] bool: capsules that are not padding."""
        return torch.ones_like(self.expanded) if self.mask is None else self.mask

    def can_open(self) -> Tensor:
        """[B, k] bool: unopened capsules that have children to show."""
        if self.children is None:
            return torch.zeros_like(self.expanded)
        return self.valid() & ~self.expanded

    def opened(self, which: Tensor) -> CapsuleState:
        """The state after opening `which` [B, k] bool."""
        return replace(self, expanded=self.expanded | (which & self.can_open()))

    def visible_children(self) -> Tensor | None:
        """[B, k, m, D]: children of open capsules, zeros elsewhere, so that nothing leaks from an unopened capsule."""
        if self.children is None:
            return None
        return torch.where(self.expanded[:, :, None, None], self.children, 0.0)
