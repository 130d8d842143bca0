"""Checks of saved numbers and tensors before training takes them over: a checkpoint with correct hashes may still not
have been written by trm. All functions raise ValueError or TypeError naming what is wrong.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from trm_core.data.fields import IGNORE_LABEL
from trm_core.model.carry import Carry
from trm_core.model.data_shape import DataShape

Numbers = TypeVar("Numbers")


def take_numbers(into: Numbers, saved: dict[str, Any]) -> None:
    """Replace every field of a dataclass of numbers by the saved number of the same name."""
    for field in fields(into):  # type: ignore[arg-type]
        value, kind = saved[field.name], type(getattr(into, field.name))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or kind(value) != value:
            raise ValueError(f"{field.name} is {value!r:.60}, not a number that training writes")
        setattr(into, field.name, kind(value))


def require_known(carry: Carry, data: DataShape) -> None:
    """Tokens, puzzles and labels of the rows in the carry must be ones that the model knows."""
    capsules = carry.capsules
    limits: list[tuple[str, Tensor | None, int, int]] = [("labels", carry.labels, IGNORE_LABEL, data.num_classes)]
    if data.tokens:
        limits += [
            ("tokens", capsules.sketches, 0, data.vocab_size),
            ("puzzles", capsules.puzzles, 0, data.num_puzzles),
        ]
    for name, values, least, limit in limits:
        if values is not None and values.numel() and not bool(((values >= least) & (values < limit)).all()):
            raise ValueError(f"carry: {name} are {int(values.min())} to {int(values.max())}, not below {limit}")


def require_optimizer_state(optimizer: torch.optim.Optimizer, groups: Any, state: dict[int, dict[str, Tensor]]) -> None:
    """`groups` must number the parameters as the optimiser does, and `state` must have what each of them needs."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own = [group["params"] for group in optimizer.state_dict()["param_groups"]]
    if [group["params"] for group in groups] != own:
        raise ValueError("an optimiser's parameters are numbered in another way")
    names = {name for values in state.values() for name in values}
    for index, values in state.items():
        if values.keys() != names:
            raise ValueError(f"an optimiser's parameter {index} has {sorted(values)} where others have {sorted(names)}")
        for name, value in values.items():
            counts = name == "step"
            if value.shape != (() if counts else parameters[index].shape):
                raise ValueError(f"an optimiser's {name} of parameter {index} has the shape {tuple(value.shape)}")
            if counts and not bool(value >= 0):
                raise ValueError(f"an optimiser has taken {float(value)} steps for parameter {index}")
