"""How much of this machine's arithmetic throughput a step uses."""

from __future__ import annotations

import time

import torch

from trm_core.evaluation.flops import flops_counted
from trm_core.profiling.steps import Stepper

_SIZE = {"cpu": 1024, "cuda": 4096}
_SECONDS = 0.5


def flops_of_step(stepper: Stepper) -> float:
    """Floating-point operations of the matrix products of one whole step: forward, backward, Q-learning, optimiser."""
    with flops_counted() as counter:
        stepper.take(1)
    return counter.total


def matrix_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations per second of a large matrix product on this machine, in the precision of the recursion
    (`training.precision`) and with torch's current number of threads. The best of many, because other load on the
    machine can only slow it down.
    """
    size = _SIZE.get(device.type, 1024)
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, precision)) for _ in range(2))
    best, begin = float("inf"), time.perf_counter()
    a @ b  # untimed: the first product also starts threads
    while time.perf_counter() - begin < _SECONDS:
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
