"""AdamAtan2 (Everett et al., 2024): Adam without epsilon, invariant to the scale of the gradient.

    m <- b1 m + (1 - b1) g          v <- b2 v + (1 - b2) g^2
    p <- p (1 - lr wd) - lr / (1 - b1^t) * atan2(m, sqrt(v / (1 - b2^t)))

This is what the CUDA kernels of the `adam-atan2` package compute: the bias of the first moment is corrected outside
atan2, that of the second inside, and the weight decay is decoupled. An update is at most lr * pi/2 / (1 - b1^t) in
size, and 0 where g has always been 0. `adam_atan2` picks those kernels if they pass real steps, and otherwise the pure
path below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from trm_core.optim.uncompiled import Uncompiled


class AdamAtan2(Uncompiled):
    """The pure path: foreach operations, any device."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p] = {
                        "step": torch.zeros((), dtype=torch.float32),
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }
            # One list of tensors per step count: a parameter that sat out some steps has its own bias corrections.
            by_step: dict[float, list[Tensor]] = {}
            counts = [self.state[p]["step"] for p in params]
            if counts:
                torch._foreach_add_(counts, 1)
            for p, count in zip(params, counts, strict=True):
                by_step.setdefault(float(count), []).append(p)
            for t, same_step in by_step.items():
                self._update(same_step, t, group)
        return loss

    def _update(self, params: list[Tensor], t: float, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        grads = [p.grad for p in params if p.grad is not None]
        m = [self.state[p]["exp_avg"] for p in params]
        v = [self.state[p]["exp_avg_sq"] for p in params]
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        spread = torch._foreach_sqrt(v)
        torch._foreach_div_(spread, math.sqrt(1 - beta2**t))
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        direction = [torch.atan2(a, b) for a, b in zip(m, spread, strict=True)]
        torch._foreach_add_(params, direction, alpha=-group["lr"] / (1 - beta1**t))


def with_steps_beside(package: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The package's optimiser with step counts on the parameters' device, where its kernels read them. torch's
    `load_state_dict` leaves them in host memory, and a kernel given such an address ends the process's CUDA context.
    """

    class WithStepsBeside(package):  # type: ignore[misc, valid-type]
        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(state_dict)
            for parameter, state in self.state.items():
                state["step"] = state["step"].to(parameter.device)

    return WithStepsBeside


def kernels_work(device: torch.device) -> tuple[bool, str]:
    """Whether the `adam-atan2` CUDA package can be used on this device, and why (not).

    Its default install succeeds without CUDA and then cannot be imported, so it is tried out: one step, and another
    after its state was saved and loaded, compared with the formula.
    """
    if device.type != "cuda":
        return False, "no CUDA device"
    try:
        from adam_atan2 import AdamATan2  # type: ignore[import-not-found]
    except ImportError as error:
        return False, f"adam-atan2 cannot be imported ({error})"
    settings: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.95), "weight_decay": 0.1}
    try:
        theirs, ours = (two_steps(kind, device, settings) for kind in (with_steps_beside(AdamATan2), AdamAtan2))
    except RuntimeError as error:
        return False, f"adam-atan2's first steps failed ({error})"
    if not torch.allclose(theirs, ours, atol=1e-5):
        return False, "adam-atan2's first steps differ from the formula"
    return True, "adam-atan2's CUDA kernels passed two test steps"


def two_steps(kind: Callable[..., torch.optim.Optimizer], device: torch.device, settings: dict[str, Any]) -> Tensor:
    """Eight weights after one step, and another by a second optimiser that loaded the first's state from the host."""
    weights = torch.nn.Parameter(torch.ones(8, device=device))
    weights.grad = torch.linspace(-1, 1, 8, device=device)
    first, second = kind([weights], **settings), kind([weights], **settings)
    first.step()
    kept = first.state_dict()
    kept["state"] = {
        number: {name: value.cpu() for name, value in state.items()} for number, state in kept["state"].items()
    }
    second.load_state_dict(kept)
    second.step()
    return weights.detach()


def adam_atan2(params: Iterable[Any], **settings: Any) -> tuple[torch.optim.Optimizer, str]:
    """The fastest AdamAtan2 that works on the parameters' device, and the reason for the choice."""
    params = list(params)
    works, reason = kernels_work(params[0].device if params else torch.device("cpu"))
    if works:
        from adam_atan2 import AdamATan2

        return with_steps_beside(AdamATan2)(params, **settings), reason
    return AdamAtan2(params, **settings), f"pure PyTorch AdamAtan2: {reason}"
