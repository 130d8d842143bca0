"""torch's optimizers without its compiler.

torch marks the methods of an optimizer as not to be compiled, and whichever is called first imports the compiler for
it: as long again as importing torch takes. Nothing here compiles an optimizer, so its methods are taken from under
those marks (`inspect.unwrap` hands back the method itself, should torch one day not mark it any more).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch


def unmarked(method: Callable[..., Any]) -> Any:
    """A method of torch's, without what is wrapped around it."""
    return inspect.unwrap(method)


class Uncompiled(torch.optim.Optimizer):
    """Base of optimizers that do without the compiler. Theirs is still `step`, which torch does not mark here."""

    add_param_group = unmarked(torch.optim.Optimizer.add_param_group)
    state_dict = unmarked(torch.optim.Optimizer.state_dict)
    load_state_dict = unmarked(torch.optim.Optimizer.load_state_dict)
    zero_grad = unmarked(torch.optim.Optimizer.zero_grad)


class Muon(Uncompiled, torch.optim.Muon):
    """torch's Muon, whose step is not marked."""


class AdamW(Uncompiled, torch.optim.AdamW):
    """torch's AdamW. The wrapper around its step also turns gradients off, which stays."""

    step = torch.no_grad()(unmarked(torch.optim.AdamW.step))
