"""All state that is kept from one reasoning step to the next, for B rows at once.

Rows are independent episodes. A row that has `halted` (initially every row) starts over with a fresh sample at the next
step; the other rows go on.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from torch import Tensor

from trm_core.model.capsule_state import CapsuleState


@dataclass(frozen=True)
class Pending:
    """The action taken after the last step, whose effect (and so whose reward) is seen only after the next one."""

    slot: Tensor  # [B] int64: where the replay buffer keeps the state; -1: none
    action: Tensor  # [B] int64
    cost: Tensor  # [B] price units paid by the action
    opened: Tensor  # [B, k] bool: capsules the action opened


@dataclass(frozen=True)
class Carry:
    """State of B rows. K positions: k capsules, or the prefix and the k tokens of a puzzle."""

    z_H: Tensor  # [B, K, hidden]
    z_L: Tensor  # [B, K, hidden]
    x: Tensor  # [B, K, hidden] what the last step read
    steps: Tensor  # [B] int64: reasoning steps of this episode; `Episodes.begin` counts the coming one
    min_steps: Tensor  # [B] int64: the episode may not halt before this step (exploration)
    halted: Tensor  # [B] bool: the episode is over
    capsules: CapsuleState
    open_at_start: Tensor  # [B, k] bool: capsules that the episode began with open, not bought by an action
    labels: Tensor  # [B, P] int64
    price: Tensor  # [B] price level of the episode
    q_state: Tensor  # [B, S] state after the last step
    q_memory: Tensor  # [B, recurrent width] what a recurrent Q-head remembers
    utility: Tensor  # [B] u after the last step
    accuracy: Tensor  # [B] after the last step
    loss: Tensor  # [B] answer loss after the last step
    pending: Pending


Part = TypeVar("Part", Carry, Pending, CapsuleState)


def tensors_of(part: Carry | Pending | CapsuleState, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor of a carry by dotted name; absent ones are left out."""
    found: dict[str, Tensor] = {}
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, Tensor):
            found[prefix + field.name] = value
        elif value is not None:
            found.update(tensors_of(value, f"{prefix}{field.name}."))
    return found


def with_tensors(part: Part, tensors: dict[str, Tensor], prefix: str = "") -> Part:
    """`part` with its tensors replaced by those of the same dotted names. Raises KeyError if one is missing, ValueError
    if one differs in shape or in being floating-point.
    """
    changed: dict[str, Any] = {}
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, Tensor):
            taken = tensors[prefix + field.name]
            if taken.shape != value.shape or taken.is_floating_point() != value.is_floating_point():
                what = f"{tuple(taken.shape)} {taken.dtype}, not {tuple(value.shape)} {value.dtype}"
                raise ValueError(f"carry: {prefix}{field.name} is {what}")
            changed[field.name] = taken.to(value.device)
        elif value is not None:
            changed[field.name] = with_tensors(value, tensors, f"{prefix}{field.name}.")
    return replace(part, **changed)
