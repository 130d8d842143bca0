"""Counting floating-point operations with torch's counter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def flops_counted() -> Iterator[FlopCounterMode]:
    """Counts those of the matrix products inside; `get_total_flops` says how many.

    The counter knows the plain attention, not the fused one of a processor.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter
