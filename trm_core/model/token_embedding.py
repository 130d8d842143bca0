"""Puzzles -> x, the input of the recursion: a token per cell, behind a prefix that holds the puzzle's own embedding.

    x = sqrt(D) * [puzzle embedding, token embeddings]                  positions: rope or none
    x = sqrt(D) * ([puzzle embedding, token embeddings] + positions) / sqrt(2)      learned

Entries are stored at 1 / sqrt(D) of the size that they have in x, as in the public TRM and HRM code: with an optimiser
whose steps do not depend on the gradient's scale, this sets how fast they learn.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trm_core.config.schema import ArchConfig
from trm_core.model.capsule_state import CapsuleState
from trm_core.model.data_shape import DataShape


class PuzzleEmbedding(nn.Module):
    """One vector per puzzle identifier, of which a step touches only those of its rows.

    A buffer, not a parameter: optimisers, DDP and weight averages would go through all of it at every step. What a
    training forward reads is kept in `used`, where its gradient arrives, for `trm_core.optim.sparse_sign_sgd`.
    """

    weights: Tensor

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(count, width))
        self.used: list[tuple[Tensor, Tensor]] = []  # identifiers [B], what was read for them [B, width]

    def forward(self, identifiers: Tensor) -> Tensor:
        """[B] -> [B, width]"""
        rows = self.weights[identifiers]
        if self.training and torch.is_grad_enabled():
            rows = rows.detach().requires_grad_()
            self.used.append((identifiers, rows))
        return rows


class TokenEmbedding(nn.Module):
    """CapsuleState of a puzzle -> x [B, prefix + S, hidden]."""

    def __init__(self, arch: ArchConfig, data: DataShape) -> None:
        super().__init__()
        self.prefix, self.hidden_size = prefix_length(arch, data), arch.hidden_size
        self.tokens = nn.Embedding(data.vocab_size, arch.hidden_size)
        self.puzzles = PuzzleEmbedding(data.num_puzzles, arch.puzzle_emb_ndim) if self.prefix else None
        self.position: nn.Parameter | None = None
        if arch.pos_encodings == "learned":
            self.position = nn.Parameter(torch.empty(self.prefix + data.num_capsules, arch.hidden_size))

    def forward(self, puzzles: CapsuleState) -> Tensor:
        x = self.tokens(puzzles.sketches)
        if self.puzzles is not None:
            assert puzzles.puzzles is not None
            own = self.puzzles(puzzles.puzzles)
            own = F.pad(own, (0, self.prefix * self.hidden_size - own.shape[1]))
            x = torch.cat([own.unflatten(1, (self.prefix, self.hidden_size)), x], 1)
        if self.position is not None:
            x = (x + self.position) / math.sqrt(2.0)
        return math.sqrt(self.hidden_size) * x


def prefix_length(arch: ArchConfig, data: DataShape) -> int:
    """Positions before the first token; none for capsules."""
    if not data.vocab_size or not arch.puzzle_emb_ndim:
        return 0
    return arch.puzzle_emb_len or -(-arch.puzzle_emb_ndim // arch.hidden_size)
