"""torch's optimizers without its compiler.

torch wraps the methods of an optimizer to exclude them from compilation, and whichever is called first imports the
compiler for that, which takes as long again as importing torch. Nothing here compiles an optimizer, so its methods are
unwrapped (`inspect.unwrap` returns the method itself, should torch one day no longer wrap it).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch


def unmarked(method: Callable[..., Any]) -> Any:
    """A method of torch's without its wrapper."""
    return inspect.unwrap(method)


class Uncompiled(torch.optim.Optimizer):
    """Base of optimizers that do without the compiler. `step` is theirs to define; torch does not wrap it here."""

    add_param_group = unmarked(torch.optim.Optimizer.add_param_group)
    state_dict = unmarked(torch.optim.Optimizer.state_dict)
    load_state_dict = unmarked(torch.optim.Optimizer.load_state_dict)
    zero_grad = unmarked(torch.optim.Optimizer.zero_grad)


class Muon(Uncompiled, torch.optim.Muon):
    """torch's Muon, whose step is not wrapped."""


class AdamW(Uncompiled, torch.optim.AdamW):
    """torch's AdamW. The wrapper around its step also turns gradients off, which stays."""

    step = torch.no_grad()(unmarked(torch.optim.AdamW.step))
