"""Counts floating-point operations by torch's formulas."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
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
    with sdpa_kernel(SDPBackend.MATH), _nothing_compiled(), FlopCounter() as counter:
        yield counter


def _nothing_compiled() -> AbstractContextManager[object]:
    """Compiled networks run as they are written: the compiler would compile the counter itself, for every operator and
    shape that it meets.
    """
    loaded = "torch._dynamo" in sys.modules  # otherwise nothing is compiled, and this would import it
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()
