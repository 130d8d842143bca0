"""Intrinsic reward for rarely seen states: hashed counts, and the error of a network that learns a random one.

    bonus(s) = 1 / sqrt(n(hash(s))) + |predictor(s) - target(s)|^2 / dim

The count is of states with the same signs under a few random projections (Tang et al., 2017); the error is random
network distillation (Burda et al., 2019): `target` is a fixed random network, and `predictor` learns to imitate it on
the states that are visited, so its error is large where few were. States enter as the Q-head reads them, without its
recurrent memory.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trm_core.config.schema import DQNConfig
from trm_core.distributed.collectives import all_sum
from trm_core.model.layers import MLP, truncated_normal_


class Curiosity(nn.Module):
    """Reads states [B, S] as `QHead.readable` returns them; `counts` [2^bits] is the same on all ranks."""

    projections: Tensor
    counts: Tensor

    def __init__(self, config: DQNConfig, state_width: int) -> None:
        super().__init__()
        bits, dim = config.curiosity_hash_bits, config.curiosity_rnd_dim
        self.register_buffer("projections", torch.randn(state_width, bits))
        self.register_buffer("counts", torch.zeros(2**bits, dtype=torch.int64))
        self.predictor = MLP(state_width, 2 * dim, dim)
        self.target = MLP(state_width, 2 * dim, dim).requires_grad_(False)
        for net, gain in ((self.predictor, 1.0), (self.target, math.sqrt(2.0))):
            for layer in (net.hidden, net.output):
                truncated_normal_(layer.weight, gain / math.sqrt(layer.in_features))
                nn.init.zeros_(layer.bias)

    def cells(self, states: Tensor) -> Tensor:
        """[B] int64: the cell of the count table that each state falls into."""
        bits = (states @ self.projections > 0).long()
        return (bits << torch.arange(bits.shape[1], device=bits.device)).sum(1)

    def errors(self, states: Tensor) -> Tensor:
        """[B] squared error of the predictor, with gradient to it."""
        return F.mse_loss(self.predictor(states), self.target(states), reduction="none").mean(1)

    @torch.no_grad()
    def bonus(self, states: Tensor) -> Tensor:
        """[B] intrinsic reward of arriving in these states."""
        return self.counts[self.cells(states)].clamp(min=1).rsqrt() + self.errors(states)

    @torch.no_grad()
    def observe(self, states: Tensor) -> None:
        """Count the states of this step, those of all ranks. Every rank calls it."""
        cells = self.cells(states)
        # A GPU has to be waited for with `bincount`, whose result may be longer.
        self.counts += all_sum(torch.zeros_like(self.counts).index_add_(0, cells, torch.ones_like(cells)))
