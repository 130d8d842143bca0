"""The block network f of the recursion: post-norm attention and SwiGLU over positions.

Unusual here: normalisation comes *after* each residual sum (so z_H and z_L keep RMS 1 through any number of cycles), it
has no learned gain, and no linear layer has a bias. Shapes: B rows, K positions, D width, n heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trm_core.config.schema import HierarchyBias


def rms_norm(x: Tensor) -> Tensor:
    """x / RMS(x) over the last dimension, without a gain."""
    return F.rms_norm(x, (x.shape[-1],), eps=1e-5)


class Attention(nn.Module):
    """Full multi-head attention over positions. [B, K, D] -> [B, K, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BKD: Tensor, bias: Tensor | None) -> Tensor:
        B, K, D = x_BKD.shape
        q, k, v = self.split(x_BKD)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(mixed.transpose(1, 2).reshape(B, K, D))

    def split(self, x_BKD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, n, K, D / n]."""
        B, K, D = x_BKD.shape
        return self.qkv(x_BKD).view(B, K, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4).unbind(0)

    def received(self, x_BKD: Tensor, bias: Tensor | None) -> Tensor:
        """[B, K] how much attention each position gets, as a mean over heads and asking positions."""
        q, k, _ = self.split(x_BKD)
        logits = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        if bias is not None:
            logits = logits.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else logits + bias
        return logits.softmax(-1).mean((1, 2))


class SwiGLU(nn.Module):
    """Gated feed-forward (Shazeer, 2020). [.., D] -> [.., D]."""

    def __init__(self, width: int, expansion: float) -> None:
        super().__init__()
        # Two thirds, because the gate adds a third matrix; a multiple of 32 for the matrix kernels.
        hidden = -(-round(expansion * width * 2 / 3) // 32) * 32
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """One post-norm layer: x <- norm(x + attention(x)); x <- norm(x + ffn(x))."""

    def __init__(self, width: int, heads: int, expansion: float, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.ffn = SwiGLU(width, expansion)
        self.dropout = dropout

    def forward(self, x_BKD: Tensor, bias: Tensor | None) -> Tensor:
        x_BKD = rms_norm(x_BKD + F.dropout(self.attention(x_BKD, bias), self.dropout, self.training))
        return rms_norm(x_BKD + F.dropout(self.ffn(x_BKD), self.dropout, self.training))


class Network(nn.Module):
    """f: a stack of blocks. [B, K, D] -> [B, K, D]."""

    def __init__(self, width: int, layers: int, heads: int, expansion: float, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, expansion, dropout) for _ in range(layers))

    def forward(self, x_BKD: Tensor, bias: Tensor | None) -> Tensor:
        for block in self.blocks:
            x_BKD = block(x_BKD, bias)
        return x_BKD


def attention_bias(mask: Tensor | None, parents: Tensor | None, weights: HierarchyBias | None) -> Tensor | None:
    """What is added to the attention logits [B, 1, K or 1, K]; None where there is nothing to add.

    mask [B, K] bool hides padding capsules. parents [B, K] (index of each capsule's parent, -1: a root) biases every
    pair by how they are related (pipeline.md, "Hierarchical Attention"); bool instead of float where only padding is
    hidden, which is the faster path.
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
    with torch.no_grad():
        nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)
