"""Counts floating-point operations by torch's formulas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCounter(TorchDispatchMode):
    """Adds up the operations inside, as torch's `FlopCounterMode` does, whose import of the compiler takes a second."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # telling the compiler to leave this alone would import it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


@contextmanager
def flops_counted() -> Iterator[FlopCounter]:
    """Counts the operations of the matrix products inside.

    The formulas know plain attention, not the fused attention of CPUs.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounter() as counter:
        yield counter
