"""The parts with gradients of their own: equal to the plain forms, in values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trm_core.model.elementwise import gated, rms_norm, rotated
from trm_core.model.layers import rope

ROTATION = rope(5, 8, 1e4)


def plain_gated(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def plain_rotated(x: Tensor) -> Tensor:
    cos, sin = (part[:, None, None].to(x.dtype) for part in ROTATION)
    return x * cos + torch.cat([x[..., 4:], x[..., :4]], -1) * sin


PAIRS = {
    "rms_norm": (rms_norm, lambda x: F.rms_norm(x, (x.shape[-1],), eps=1e-5)),
    "gated": (gated, plain_gated),
    "rotated": (lambda x: rotated(x, ROTATION), plain_rotated),
}
pairs = pytest.mark.parametrize(("ours", "plain"), PAIRS.values(), ids=PAIRS)
Part = Callable[[Tensor], Tensor]


def inputs(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(3, 5, 2, 4, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pairs
def test_values_and_gradients_are_those_of_the_plain_form(ours: Part, plain: Part) -> None:
    x = inputs()
    x[0, 0, 0, 0] = 0  # a vector without a direction
    results = []
    for part in (ours, plain):
        leaf = x.clone().requires_grad_()
        y = part(leaf * 1.0)
        (gradient,) = torch.autograd.grad(y, leaf, torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y))
        results.append((y.detach(), gradient))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


@pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_do_not_depend_on_whether_a_gradient_is_asked_for(ours: Part, plain: Part, dtype: torch.dtype) -> None:
    x = inputs(dtype)
    learning = ours(x.clone().requires_grad_() * 1.0)
    with torch.no_grad():
        not_learning = ours(x.clone())
    assert learning.requires_grad
    assert learning.dtype == dtype
    assert torch.equal(learning, not_learning)
    torch.testing.assert_close(learning, plain(x), rtol=torch.finfo(dtype).eps * 4, atol=torch.finfo(dtype).eps * 4)


@pairs
def test_the_saved_tensors_see_no_writing(ours: Part, plain: Part) -> None:
    """One result feeds two branches, as the residual does; the gradient is both's."""
    gradients = []
    for part in (ours, plain):
        x = inputs().requires_grad_()
        y = part(x * 1.0)
        wide = y if y.shape == x.shape else torch.cat([y, 3 * y], -1)
        gradients.append(torch.autograd.grad((part(wide * 2.0) * y).sum(), x)[0])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
