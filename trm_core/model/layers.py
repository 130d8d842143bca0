"""The block network f of the recursion: post-norm attention (or an MLP over positions) and SwiGLU.

Unusual here: normalisation comes *after* each residual sum (so z_H and z_L keep RMS 1 through any number of cycles), it
has no learned gain, and no linear layer has a bias. Shapes: B rows, K positions, D width, n heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trm_core.config.schema import ArchConfig, HierarchyBias
from trm_core.model.elementwise import Rotation, gated, rms_norm, rotated


class Attention(nn.Module):
    """Full multi-head attention over positions. [B, K, D] -> [B, K, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BKD: Tensor, bias: Tensor | None, rotation: Rotation | None) -> Tensor:
        B, K, D = x_BKD.shape
        q, k, v = self.split(x_BKD, rotation)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(mixed.transpose(1, 2).reshape(B, K, D))

    def split(self, x_BKD: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, n, K, D / n]."""
        B, K, D = x_BKD.shape
        qkv = self.qkv(x_BKD).view(B, K, 3, self.heads, D // self.heads)
        if rotation is None:
            return qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = rotated(qkv[:, :, :2], rotation).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, qkv[:, :, 2].transpose(1, 2)

    def received(self, x_BKD: Tensor, bias: Tensor | None, rotation: Rotation | None) -> Tensor:
        """[B, K] attention that each position receives, averaged over heads and querying positions."""
        q, k, _ = self.split(x_BKD, rotation)
        logits = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        if bias is not None:
            logits = logits.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else logits + bias
        return logits.softmax(-1).mean((1, 2))


class SwiGLU(nn.Module):
    """Gated feed-forward (Shazeer, 2020). [.., D] -> [.., D]."""

    def __init__(self, width: int, expansion: float, multiple: int) -> None:
        super().__init__()
        # Two thirds, because the gate adds a third matrix; rounded up to a multiple that suits the matrix kernels.
        hidden = -(-round(expansion * width * 2 / 3) // multiple) * multiple
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gated(self.gate_up(x)))


class Block(nn.Module):
    """One post-norm layer: x <- norm(x + mix(x)); x <- norm(x + ffn(x)).

    mix is attention or, with `mixer: mlp`, a SwiGLU over the positions of each channel, after which the norm is over
    positions too (arXiv 2510.04871, section 4.5, and its public code).
    """

    def __init__(self, arch: ArchConfig, positions: int) -> None:
        super().__init__()
        size = (arch.ffn_expansion, arch.ffn_multiple)
        self.attention = Attention(arch.hidden_size, arch.num_heads) if arch.mixer == "attention" else None
        self.mixer = SwiGLU(positions, *size) if arch.mixer == "mlp" else None
        self.ffn = SwiGLU(arch.hidden_size, *size)
        self.dropout = arch.dropout

    def forward(self, x_BKD: Tensor, bias: Tensor | None, rotation: Rotation | None) -> Tensor:
        x_BKD = self.mix(x_BKD, bias, rotation)
        return rms_norm(self.residual(x_BKD, self.ffn(x_BKD)))

    @property
    def mix_output(self) -> nn.Linear:
        """The last matrix of the first half."""
        if self.attention is not None:
            return self.attention.out
        assert self.mixer is not None
        return self.mixer.down

    def mix(self, x_BKD: Tensor, bias: Tensor | None, rotation: Rotation | None) -> Tensor:
        """The first half of the layer."""
        if self.attention is not None:
            mixed = self.attention(x_BKD, bias, rotation)
            return rms_norm(self.residual(x_BKD, mixed))
        assert self.mixer is not None
        # One copy each way: matrix products would copy a transposed tensor anyway, and adding transposed ones is slow.
        x_BDK = x_BKD.transpose(1, 2).contiguous()
        return rms_norm(self.residual(x_BDK, self.mixer(x_BDK))).transpose(1, 2).contiguous()

    def residual(self, x: Tensor, branch: Tensor) -> Tensor:
        """x + branch, written into `branch` if it has the dtype of x."""
        branch = F.dropout(branch, self.dropout, self.training)
        return branch.add_(x) if branch.dtype == x.dtype else x + branch


class Network(nn.Module):
    """f: a stack of blocks. [B, K, D] -> [B, K, D]."""

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, arch: ArchConfig, positions: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(arch, positions) for _ in range(arch.num_layers))
        self.rotates = arch.pos_encodings == "rope" and arch.mixer == "attention"
        if self.rotates:
            cos, sin = rope(positions, arch.hidden_size // arch.num_heads, arch.rope_theta)
            self.register_buffer("rope_cos", cos, persistent=False)
            self.register_buffer("rope_sin", sin, persistent=False)

    @property
    def rotation(self) -> Rotation | None:
        return (self.rope_cos, self.rope_sin) if self.rotates else None

    def forward(self, x_BKD: Tensor, bias: Tensor | None) -> Tensor:
        rotation = self.rotation
        for block in self.blocks:
            x_BKD = block(x_BKD, bias, rotation)
        return x_BKD


def rope(positions: int, width: int, theta: float) -> Rotation:
    """Cosines and sines [K, width] of rotary positions (Su et al., 2021): channels i and i + width / 2 are rotated
    together by position / theta^(2 i / width); the sines carry the signs of the rotation.
    """
    frequency = theta ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angle = torch.outer(torch.arange(positions, dtype=torch.float32), frequency)
    sin = angle.sin()
    return torch.cat([angle.cos()] * 2, 1), torch.cat([-sin, sin], 1)


def attention_bias(mask: Tensor | None, parents: Tensor | None, weights: HierarchyBias | None) -> Tensor | None:
    """What is added to the attention logits, [B, 1, K or 1, K]; None if there is nothing to add.

    mask [B, K] bool hides padding capsules. parents [B, K] (index of each capsule's parent, -1: a root) biases every
    pair of capsules by how they are related (pipeline.md, "Hierarchical Attention"). If only padding is hidden, the
    result is bool instead of float, which is the faster path.
    """
    hidden = None if mask is None else mask[:, None, None, :]
    if weights is None:
        return hidden
    assert parents is not None
    me = torch.arange(parents.shape[1], device=parents.device)
    looks_at_parent = parents[:, :, None] == me  # [B, K, K]: the row's parent is the column
    looks_at_child = looks_at_parent.transpose(1, 2)
    siblings = (parents[:, :, None] == parents[:, None, :]) & (parents >= 0)[:, :, None]
    near = siblings | (me[:, None] == me)
    bias = torch.full_like(looks_at_parent, weights.unrelated, dtype=torch.float32)
    bias = bias.masked_fill(near, weights.sibling).masked_fill(looks_at_parent, weights.child_to_parent)
    bias = bias.masked_fill(looks_at_child, weights.parent_to_child)[:, None]
    return bias if hidden is None else bias.masked_fill(~hidden, -torch.inf)


class MLP(nn.Module):
    """Two linear layers with a SiLU between. [.., inputs] -> [.., outputs]."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.output = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.silu(self.hidden(x)))


def truncated_normal_(tensor: Tensor, std: float) -> None:
    """Fill with a normal truncated at two standard deviations, which leaves a standard deviation of 0.88 `std`."""
    with torch.no_grad():
        nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)
