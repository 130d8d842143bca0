"""The recursion of "Less is More" (arXiv 2510.04871, section 4): nested cycles over two states.

    for each of H cycles:
        for each of L cycles:  z_L = f(z_L + z_H + x)
        z_H = f(z_H + z_L)

All but the last `grad_cycles` high-level cycles run without gradient. One tied network serves both levels (TRM), or one
each (`tied: false`, HRM).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trm_core.config.schema import ArchConfig
from trm_core.model.layers import Network


class Recursion(nn.Module):
    """(z_H, z_L, x) each [B, K, D] -> (z_H, z_L)."""

    def __init__(self, arch: ArchConfig) -> None:
        super().__init__()
        self.H_cycles, self.L_cycles, self.grad_cycles = arch.H_cycles, arch.L_cycles, arch.grad_cycles
        size = (arch.hidden_size, arch.num_layers, arch.num_heads, arch.ffn_expansion, arch.dropout)
        self.low = Network(*size)
        self.high = self.low if arch.tied else Network(*size)

    def cycle(self, z_H: Tensor, z_L: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """One high-level cycle."""
        for _ in range(self.L_cycles):
            z_L = self.low(z_L + z_H + x, bias)
        return self.high(z_H + z_L, bias), z_L

    def forward(self, z_H: Tensor, z_L: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            for _ in range(self.H_cycles - self.grad_cycles):
                z_H, z_L = self.cycle(z_H, z_L, x, bias)
        for _ in range(self.grad_cycles):
            z_H, z_L = self.cycle(z_H, z_L, x, bias)
        return z_H, z_L
