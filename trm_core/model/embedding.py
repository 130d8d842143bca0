"""Capsules -> x, the input of the recursion, computed anew at every reasoning step from the current capsule state.

    x_i = (W_s sketch_i + position_i + opened_i * (aggregate(children_i) + mark)) / sqrt(2)

Without learned positions there is neither position_i nor the division. Sketches and children are first standardised by
the training split's mean and standard deviation, so that x has an RMS of about 1, like z_H and z_L, whatever the scale
of the data: with x ten times weaker nothing was learned (docs/decision-process.md).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trm_core.config.schema import ArchConfig
from trm_core.model.capsule_state import CapsuleState
from trm_core.model.data_shape import DataShape


class ChildAggregation(nn.Module):
    """m children [B, k, m, D] -> one vector per capsule [B, k, hidden].

    Children, the largest tensor of a step, are standardised, (child - mean) * scale, without a standardised copy: mean
    and scale are folded into the linear maps that follow, and a softmax ignores what is the same for all children.
    """

    def __init__(self, kind: str, dim: int, num_children: int, hidden: int) -> None:
        super().__init__()
        self.kind = kind
        inputs = dim * num_children if kind == "project" else dim
        self.project = nn.Linear(inputs, hidden, bias=False)
        if kind == "attention":
            self.score = nn.Linear(dim, 1, bias=False)

    def forward(self, children: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """mean, scale [D]."""
        if self.kind == "project":
            m = children.shape[2]
            weight = self.project.weight * scale.repeat(m)
            return F.linear(children.flatten(2), weight, -(weight @ mean.repeat(m)))
        if self.kind == "mean":
            pooled = children.mean(2)
        elif self.kind == "first":
            pooled = children[:, :, 0]
        else:
            weights = F.linear(children, self.score.weight * scale).softmax(2)
            pooled = (weights * children).sum(2)
        return self.project((pooled - mean) * scale)


class CapsuleEmbedding(nn.Module):
    """CapsuleState -> x [B, k, hidden]."""

    sketch_mean: Tensor
    sketch_scale: Tensor
    child_mean: Tensor
    child_scale: Tensor

    def __init__(self, arch: ArchConfig, data: DataShape) -> None:
        super().__init__()
        self.sketch = nn.Linear(data.dim, arch.hidden_size, bias=False)
        self.position: nn.Parameter | None = None
        if arch.pos_encodings == "learned":
            self.position = nn.Parameter(torch.empty(data.num_capsules, arch.hidden_size))
        self.child_aggregation: ChildAggregation | None = None
        if data.num_children:
            self.child_aggregation = ChildAggregation(
                arch.child_aggregation, data.dim, data.num_children, arch.hidden_size
            )
            self.opened_mark = nn.Parameter(torch.empty(arch.hidden_size))
        for name in ("sketch", "child"):
            self.register_buffer(f"{name}_mean", torch.zeros(data.dim))
            self.register_buffer(f"{name}_scale", torch.ones(data.dim))

    @torch.no_grad()
    def fit_scale(self, sketches: Tensor, children: Tensor | None) -> None:
        """Take mean and standard deviation per dimension from training samples [n, k, D] and [n, k, m, D]."""
        for name, values in (("sketch", sketches), ("child", children)):
            if values is None:
                continue
            flat = values.reshape(-1, values.shape[-1]).double()
            spread = flat.std(0)
            # A constant dimension carries no information; dividing by its rounding noise would make it dominate.
            spread = torch.where(spread > 1e-6 * flat.abs().mean(0).clamp(min=1e-6), spread, torch.ones_like(spread))
            getattr(self, f"{name}_mean").copy_(flat.mean(0))
            getattr(self, f"{name}_scale").copy_(1.0 / spread)

    def standardised(self, sketches: Tensor) -> Tensor:
        """Sketches [.., D] in units of the training split's spread."""
        return (sketches - self.sketch_mean) * self.sketch_scale

    def detail(self, children: Tensor) -> Tensor:
        """Children [.., k, m, D] -> one vector per capsule [.., k, hidden]."""
        assert self.child_aggregation is not None
        return self.child_aggregation(children, self.child_mean, self.child_scale)

    def forward(self, capsules: CapsuleState, detail: Tensor | None = None) -> Tensor:
        """detail [B, k, hidden]: `self.detail` of all children, if the caller needs it anyway; only that of open
        capsules is used.
        """
        x = self.sketch(self.standardised(capsules.sketches))
        if self.position is not None:
            x = x + self.position
        if self.child_aggregation is not None:
            if detail is None and (visible := capsules.visible_children()) is not None:
                detail = self.detail(visible)
            if detail is not None:
                x = x + torch.where(capsules.expanded[:, :, None], detail + self.opened_mark, 0.0)
        if capsules.mask is not None:
            x = x * capsules.mask[:, :, None]
        return x if self.position is None else x / math.sqrt(2.0)


class SketchDecoder(nn.Module):
    """The cycle term of pipeline.md 4.9: from the projected children of every capsule back to its sketch."""

    def __init__(self, arch: ArchConfig, data: DataShape) -> None:
        super().__init__()
        self.decode = nn.Linear(arch.hidden_size, data.dim)

    def forward(self, embedding: CapsuleEmbedding, detail: Tensor, sketches: Tensor) -> Tensor:
        """Squared error [B, k] between the sketch decoded from `detail` [B, k, hidden] and the standardised sketch."""
        return F.mse_loss(self.decode(detail), embedding.standardised(sketches), reduction="none").mean(-1)
