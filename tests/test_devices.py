"""Which device is computed on, and what is said of one that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trm_core.devices import pick_device
from trm_core.errors import ConfigError


def test_a_device_without_double_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Apple's: a run would end at its first line of metrics."""
    zeros = torch.zeros

    def on_mps(*sizes: int, dtype: torch.dtype | None = None, **more: Any) -> torch.Tensor:
        if dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return zeros(*sizes, dtype=dtype)

    monkeypatch.setattr(torch, "zeros", on_mps)
    with pytest.raises(
        ConfigError, match="device 'mps' cannot be used: Cannot convert a MPS Tensor to float64"
    ) as told:
        pick_device("mps")
    assert told.value.hint == "training.device=auto or cpu"


def test_the_processor_is_always_there() -> None:
    assert pick_device("cpu")[0] == torch.device("cpu")
