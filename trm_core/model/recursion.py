"""The recursion of "Less is More" (arXiv 2510.04871, section 4): nested cycles over two states.

    for each of H cycles:
        for each of L cycles:  z_L = f(z_L + z_H + x)
        z_H = f(z_H + z_L)
        z_H = refine(z_H)          # memory bank and concept vocabulary, where they are on

All but the last `grad_cycles` high-level cycles run without gradient; in the cycles with gradient, so do all but the
last `grad_low_cycles` low-level updates. One tied network serves both levels (TRM), or each level has its own
(`tied: false`, HRM).

`precision: bfloat16` (and float16) is autocast around one cycle, never around several: autocast caches the weights that
it casts, and those cast without gradient, in the first cycles, would be reused without gradient in the cycles that
learn.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trm_core.config.schema import ArchConfig, TrainingConfig
from trm_core.model.layers import Block, Network


class Recursion(nn.Module):
    """(z_H, z_L, x) each [B, K, D] -> (z_H, z_L)."""

    def __init__(self, arch: ArchConfig, training: TrainingConfig, positions: int) -> None:
        super().__init__()
        self.precision, self.recompute = training.precision, training.activation_checkpointing
        self.H_cycles, self.L_cycles, self.grad_cycles = arch.H_cycles, arch.L_cycles, arch.grad_cycles
        self.before_gradient = 0 if arch.grad_low_cycles is None else arch.L_cycles - arch.grad_low_cycles
        self.low = Network(arch, positions)
        self.high = self.low if arch.tied else Network(arch, positions)

    def cycle(self, z_H: Tensor, z_L: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """One high-level cycle."""
        if self.before_gradient:
            with torch.no_grad(), self.autocast(z_H.device):
                for _ in range(self.before_gradient):
                    z_L = self.apply_network(self.low, z_L + z_H + x, bias)
        with self.autocast(z_H.device):
            for _ in range(self.L_cycles - self.before_gradient):
                z_L = self.apply_network(self.low, z_L + z_H + x, bias)
            return self.apply_network(self.high, z_H + z_L, bias), z_L

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The precision that the networks compute in."""
        reduced = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self.precision)
        return nullcontext() if reduced is None else torch.autocast(device.type, reduced)

    def apply_network(self, network: Network, z: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the network; with activation checkpointing, what lies between its layers is recomputed, not kept."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(network, z, bias, use_reentrant=False)
        return network(z, bias)

    def compile_networks(self) -> None:
        """Compile at the next call; names and values of the weights stay as they are."""
        for network in {self.low, self.high}:
            network.compile()

    def forward(
        self,
        z_H: Tensor,
        z_L: Tensor,
        x: Tensor,
        bias: Tensor | None,
        refine: Callable[[Tensor], Tensor],
        every: bool = False,
    ) -> tuple[list[Tensor], Tensor]:
        """z_H after the last cycle, or after each one if `every`; and the last z_L."""
        cycles: list[Tensor] = []
        for number in range(self.H_cycles):
            learning = number >= self.H_cycles - self.grad_cycles
            with torch.set_grad_enabled(torch.is_grad_enabled() and learning):
                z_H, z_L = self.cycle(z_H, z_L, x, bias)
                z_H = refine(z_H)
            if not every:
                cycles.clear()
            cycles.append(z_H)
        return cycles, z_L

    def attention_received(self, z_H: Tensor, bias: Tensor | None) -> Tensor:
        """[B, K] share of the attention that each position would get if the last block of the high level read z_H, its
        own output.
        """
        last = self.high.blocks[-1]
        assert isinstance(last, Block)
        assert last.attention is not None
        return last.attention.received(z_H, bias, self.high.rotation)
