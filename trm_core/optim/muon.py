"""Muon (Jordan et al., 2024): momentum, with each matrix of it replaced by the nearest orthogonal one.

    m <- mu m + (1 - mu) g;  u = (1 - mu) g + mu m;  p <- p (1 - lr wd) - lr * 0.2 sqrt(max(rows, columns)) *
    NewtonSchulz(u)

The factor gives updates the size of Adam's (Liu et al., 2025), so that a learning rate means the same for both. This is
what `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` computes, except that the iteration runs in float32: torch's
runs in bfloat16, which takes many times as long on a CPU without bfloat16 arithmetic (docs/notes.md). `muon` chooses
between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trm_core.devices import reduced_precision
from trm_core.optim.uncompiled import Muon, Uncompiled

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: fast for small singular values, ends within 0.3 of 1
_ITERATIONS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """[n, rows, columns] float32 -> nearly orthogonal matrices of the same shape (singular values between 0.7 and
    1.2).
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    u = matrices.mT if tall else matrices
    u = u / u.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = u @ u.mT
        u = torch.baddbmm(u, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), u, beta=a)
    return u.mT if tall else u


class Float32Muon(Uncompiled):
    """Muon for matrices, with the iteration in float32; matrices of the same shape are iterated together."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                self._update(params, shape, group)
        return loss

    def _update(self, params: list[nn.Parameter], shape: torch.Size, group: dict[str, Any]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        directions = orthogonalise(torch.stack(torch._foreach_lerp(grads, buffers, group["momentum"])).float())
        weights: list[Tensor] = list(params)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        size = 0.2 * max(shape) ** 0.5
        torch._foreach_add_(weights, list(directions.to(params[0].dtype)), alpha=-group["lr"] * size)


def muon(params: list[nn.Parameter], **settings: Any) -> tuple[torch.optim.Optimizer, str]:
    """torch's Muon on a GPU with arithmetic for bfloat16, the float32 one elsewhere; and the reason for the choice."""
    device = params[0].device
    if device.type != "cuda":
        return Float32Muon(params, **settings), "Muon with its iteration in float32: not on a GPU"
    if reduced_precision(device) != "bfloat16":
        return Float32Muon(params, **settings), "Muon with its iteration in float32: this GPU only emulates bfloat16"
    return Muon(params, adjust_lr_fn="match_rms_adamw", **settings), "torch.optim.Muon: on a GPU"
