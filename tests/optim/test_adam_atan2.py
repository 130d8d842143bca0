"""AdamAtan2 against one number at a time in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from two_devices import second_device

from trm_core.optim.adam_atan2 import AdamAtan2, adam_atan2, kernels_work, two_steps, with_steps_beside


class Scalar:
    """The formula for a single number."""

    def __init__(self, value: float, lr: float, betas: tuple[float, float], decay: float) -> None:
        self.value, self.lr, self.betas, self.decay = value, lr, betas, decay
        self.m = self.v = 0.0
        self.t = 0

    def step(self, gradient: float | None) -> None:
        if gradient is None:
            return
        b1, b2 = self.betas
        self.t += 1
        self.m = b1 * self.m + (1 - b1) * gradient
        self.v = b2 * self.v + (1 - b2) * gradient**2
        self.value *= 1 - self.lr * self.decay
        spread = math.sqrt(self.v / (1 - b2**self.t))
        self.value -= self.lr / (1 - b1**self.t) * math.atan2(self.m, spread)


def parameter(values: list[float]) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def test_equals_the_formula_with_several_groups_and_skipped_gradients() -> None:
    starts = [[0.5, -1.0], [2.0], [0.1, 0.2, -0.3]]
    params = [parameter(start) for start in starts]
    common = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1}
    special = {"lr": 0.3, "betas": (0.8, 0.99), "weight_decay": 0.0}
    optimizer = AdamAtan2([{"params": params[:2]}, {"params": params[2:], **special}], **common)
    expected = []
    for index, start in enumerate(starts):
        kind = special if index == 2 else common
        expected.append([Scalar(value, kind["lr"], kind["betas"], kind["weight_decay"]) for value in start])
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        for index, (p, scalars) in enumerate(zip(params, expected, strict=True)):
            skipped = (step + index) % 4 == 0
            gradient = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 10.0 ** (step % 5 - 2)
            p.grad = None if skipped else gradient
            for place, scalar in enumerate(scalars):
                scalar.step(None if skipped else float(gradient[place]))
        optimizer.step()
        for p, scalars in zip(params, expected, strict=True):
            assert p.tolist() == pytest.approx([scalar.value for scalar in scalars], rel=1e-12, abs=1e-14)


def test_zero_gradients_change_nothing() -> None:
    p = parameter([1.0, -2.0])
    optimizer = AdamAtan2([p], lr=0.1, weight_decay=0.0)
    for _ in range(3):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    assert p.tolist() == [1.0, -2.0]


@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_scale_of_the_gradient_does_not_matter(scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    plain, scaled = parameter([1.0, 2.0, 3.0]), parameter([1.0, 2.0, 3.0])
    optimizers = [AdamAtan2([p], lr=0.1, betas=(0.9, 0.95), weight_decay=0.01) for p in (plain, scaled)]
    for _ in range(5):
        plain.grad = torch.randn(3, generator=generator, dtype=torch.float64)
        scaled.grad = plain.grad * scale
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(plain, scaled, rtol=1e-9, atol=1e-12)


def test_an_update_is_bounded_and_reaches_its_bound() -> None:
    p = parameter([0.0])
    optimizer = AdamAtan2([p], lr=0.1, betas=(0.9, 0.95), weight_decay=0.0)
    p.grad = torch.full_like(p, 1e9)
    optimizer.step()
    # After one step m / (1 - b1) = g and v / (1 - b2) = g^2, but only v is corrected inside the arc tangent.
    assert p.item() == pytest.approx(-0.1 / 0.1 * math.atan2(0.1, 1.0))


def test_a_saved_state_goes_on_bit_identically() -> None:
    def gradients(step: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(step)
        return [torch.randn(3, generator=generator), torch.randn(2, 2, generator=generator)]

    def run(params: list[nn.Parameter], optimizer: AdamAtan2, steps: range) -> None:
        for step in steps:
            for p, gradient in zip(params, gradients(step), strict=True):
                p.grad = gradient
            optimizer.step()

    def fresh() -> tuple[list[nn.Parameter], AdamAtan2]:
        params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]
        return params, AdamAtan2(params, lr=0.1, weight_decay=0.1)

    whole, optimizer = fresh()
    run(whole, optimizer, range(10))
    halves, first = fresh()
    run(halves, first, range(5))
    second = AdamAtan2(halves, lr=99.0)
    second.load_state_dict(first.state_dict())
    run(halves, second, range(5, 10))
    for a, b in zip(whole, halves, strict=True):
        assert torch.equal(a, b)


def test_without_a_gpu_the_pure_path_is_taken_and_says_why() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    works, reason = kernels_work(torch.device("cpu"))
    optimizer, note = adam_atan2([parameter([1.0])], lr=0.1)
    assert not works
    assert reason == "no CUDA device"
    assert isinstance(optimizer, AdamAtan2)
    assert reason in note


class Kernels(AdamAtan2):
    """As the CUDA package: the number of steps lies beside the parameter, and elsewhere it is an illegal access."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if not self.state[p]:
                    self.state[p] = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
                    self.state[p]["step"] = torch.zeros((), device=p.device)
                if self.state[p]["step"].device != p.device:
                    raise RuntimeError("CUDA error: an illegal memory access was encountered")
        super().step()


@pytest.mark.parametrize("kind", [Kernels, with_steps_beside(Kernels)])
def test_the_steps_of_a_loaded_state_are_where_the_parameters_are(kind: type[torch.optim.Optimizer]) -> None:
    """Without that a resumed run, and a rollback, would hand the kernels an address of the host."""
    settings = {"lr": 0.1, "betas": (0.9, 0.95), "weight_decay": 0.1}
    with second_device() as device:
        if kind is Kernels:
            with pytest.raises(RuntimeError, match="illegal"):
                two_steps(kind, device, settings)
        else:
            found = two_steps(kind, device, settings).cpu()
            assert torch.allclose(found, two_steps(AdamAtan2, torch.device("cpu"), settings))
