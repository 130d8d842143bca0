"""The elementwise operations between a block's matrix products, with hand-written gradients on CPUs.

A small network spends up to a third of a step here, and all of it is memory traffic. Autograd's versions write tensors
that the backward pass does not need, or could recompute for less than it costs to read them back. Under `torch.compile`
and `torch.export` and on other devices the plain forms are used, which are fused there. Values do not depend on whether
a gradient is required.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

Rotation = tuple[Tensor, Tensor]  # cosines and sines, each [K, d]; the sines carry the signs of the rotation
_EPS = 1e-5
_DEVICE: ContextVar[str] = ContextVar("device", default="")  # kind of device to compute as on; "": the tensor's


def rms_norm(x: Tensor) -> Tensor:
    """x / RMS(x) over the last dimension, without a gain (Zhang and Sennrich, 2019). May overwrite x, so x must be a
    temporary that nothing else refers to.
    """
    if not _by_hand(x) or x.dtype not in (torch.float32, torch.float64):
        return F.rms_norm(x, (x.shape[-1],), eps=_EPS)
    return _RMSNorm.apply(x) if _learns(x) else x.mul_(_inverse_rms(x))


def gated(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where gate and up are the two halves of the last dimension. [.., 2 n] -> [.., n]."""
    if _by_hand(gate_up) and _learns(gate_up):
        return _Gated.apply(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    silu = F.silu(gate)
    return silu * up if _learns(gate_up) else silu.mul_(up)


def rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """x [B, K, .., n, d] rotated by its position: channel i with channel i + d / 2 (RoPE, Su et al., 2021)."""
    cos, sin = (part[:, None, None].to(x.dtype) for part in rotation)
    if not _by_hand(x):
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
    return _Rotated.apply(x, cos, sin) if _learns(x) else _turn(x, cos, sin, 1.0)


@contextmanager
def as_on(device: str) -> Iterator[None]:
    """Inside, compute as on this kind of device: what a GPU would keep is traced with tensors of the host."""
    before = _DEVICE.set(device)
    try:
        yield
    finally:
        _DEVICE.reset(before)


def _by_hand(x: Tensor) -> bool:
    # In this order: the compiler cannot read a context variable, and would cut every layer into pieces there.
    return not torch.compiler.is_compiling() and (_DEVICE.get() or x.device.type) == "cpu"


def _learns(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def _inverse_rms(x: Tensor) -> Tensor:
    """[.., 1]."""
    return torch.linalg.vecdot(x, x).div_(x.shape[-1]).add_(_EPS).rsqrt_()[..., None]


def _turn(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    half = x.shape[-1] // 2
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=direction)
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:], value=direction)
    return turned


class _RMSNorm(Function):
    """With y = s x, s = (mean(x^2) + eps)^-1/2: dx = s (dy - y mean(dy y)). Saves s and y, which the next layer saves
    anyway.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = _inverse_rms(x)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        y, scale = ctx.saved_tensors
        return torch.addcmul(dy, y, (dy * y).mean(-1, keepdim=True), value=-1).mul_(scale)


class _Gated(Function):
    """Both halves of the gradient are written straight into the tensor that the preceding product's backward reads."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        gradient = torch.empty_like(gate_up)
        for_gate, for_up = gradient.chunk(2, dim=-1)
        torch.ops.aten.silu_backward.grad_input(dy * up, gate, grad_input=for_gate)
        torch.mul(dy, F.silu(gate), out=for_up)
        return gradient


class _Rotated(Function):
    """The gradient is rotated back by the same angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(dy, cos, sin, -1.0), None, None
