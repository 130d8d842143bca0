"""The cycles against a plain loop, where the gradient ends, and padding."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor

from trm_core.model.elementwise import rms_norm
from trm_core.model.layers import attention_bias
from trm_core.model.recursion import Recursion


def make(**arch: object) -> Recursion:
    torch.manual_seed(1)
    recursion = Recursion(tiny.make_config(arch=arch).arch, tiny.make_config().training, 5)
    for p in recursion.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return recursion


def same(z_H: Tensor) -> Tensor:
    """Nothing happens between cycles."""
    return z_H


def inputs(rows: int = 2, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z_H, z_L, x = (torch.randn(rows, tiny.K, width, generator=generator) for _ in range(3))
    return z_H, z_L, x


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("H", "L", "grad"), [(1, 1, 1), (3, 2, 1), (3, 2, 2), (2, 3, 2)])
def test_cycles_and_where_the_gradient_ends(tied: bool, H: int, L: int, grad: int) -> None:
    recursion = make(H_cycles=H, L_cycles=L, grad_cycles=grad, tied=tied)
    calls: list[bool] = []
    recursion.low.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    if not tied:
        recursion.high.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    z_H, z_L, x = inputs()
    states, got_L = recursion(z_H, z_L, x, None, same, every=True)
    assert len(states) == H
    got_H = states[-1]
    assert calls == [False] * (H - grad) * (L + 1) + [True] * grad * (L + 1)
    [last], _ = recursion(z_H, z_L, x, None, same)
    assert torch.equal(last, got_H)
    calls.clear()
    high = recursion.low if tied else recursion.high
    for cycle in range(H):
        with torch.set_grad_enabled(cycle >= H - grad):
            for _ in range(L):
                z_L = recursion.low(z_L + z_H + x, None)
            z_H = high(z_H + z_L, None)
    assert torch.equal(got_H, z_H)
    assert torch.equal(got_L, z_L)
    ours = torch.autograd.grad(got_H.square().mean() + got_L[..., 0].sum(), list(recursion.parameters()))
    plain = torch.autograd.grad(z_H.square().mean() + z_L[..., 0].sum(), list(recursion.parameters()))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_untied_networks_are_two() -> None:
    def count(**arch: object) -> int:
        return sum(p.numel() for p in make(**arch).parameters())

    one = count(tied=True)
    assert count(tied=False) == 2 * one
    assert count(tied=True, num_layers=3) == 3 * one
    # qkv and output of attention, gate, up and down of SwiGLU (hidden rounded up to 32).
    assert one == 4 * 16 * 16 + 3 * 16 * 32


def test_states_keep_rms_one() -> None:
    states, z_L = make(H_cycles=4, L_cycles=3)(*(100.0 * value for value in inputs()), None, same)
    for z in (*states, z_L):
        torch.testing.assert_close(z.square().mean(-1), torch.ones(z.shape[:2]), rtol=1e-3, atol=0)
    assert torch.equal(rms_norm(torch.zeros(2, 4)), torch.zeros(2, 4))


def test_attention_does_not_see_padding() -> None:
    recursion = make(H_cycles=2, L_cycles=2)
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]])
    z_H, z_L, x = inputs()
    before = recursion(z_H, z_L, x, attention_bias(mask, None, None), same)[0][-1]
    other = torch.where(mask[:, :, None], x, 50.0 * torch.randn_like(x))
    after = recursion(z_H, z_L, other, attention_bias(mask, None, None), same)[0][-1]
    assert torch.equal(before[mask], after[mask])
    assert not torch.equal(before[~mask], after[~mask])
    without = recursion(z_H, z_L, other, None, same)[0][-1]
    assert not torch.allclose(before[mask], without[mask])
