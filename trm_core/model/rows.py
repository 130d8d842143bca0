"""Selecting and joining rows of the dataclasses of tensors that describe a batch of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Part = TypeVar("Part", bound="DataclassInstance")


def per_row(field: Any) -> bool:
    """Whether a field has a value per row. Fields that all rows share declare `not_per_row`."""
    return not field.metadata.get("not_per_row", False)


def take_rows(part: Part, index: Tensor | slice) -> Part:
    """The rows `index` of a dataclass, and of the dataclasses in it; None stays None."""
    changed: dict[str, Any] = {}
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, Tensor) and per_row(field):
            value = value[index]
        elif is_dataclass(value) and not isinstance(value, type):
            value = take_rows(value, index)
        changed[field.name] = value
    return replace(part, **changed)


def join_rows(parts: Sequence[Any]) -> Any:
    """Concatenate the rows of several dataclasses (tensors, lists, None) of one kind, without gradients."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part.detach() for part in parts])
    if isinstance(first, list):
        return [join_rows(members) for members in zip(*parts, strict=True)]
    if first is None:
        return None
    joined = {}
    for field in fields(first):
        values = [getattr(part, field.name) for part in parts]
        joined[field.name] = join_rows(values) if per_row(field) else values[0]
    return type(first)(**joined)
