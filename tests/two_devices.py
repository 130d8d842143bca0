"""A second device without a GPU: CPU tensors that claim to lie on it, and operators that refuse to mix devices, as
those of CUDA do.

Within `second_device`, `meta` stands for the GPU: tensors created on `DEVICE` compute in host memory but claim to be
elsewhere. Operators on tensors from both places are refused, except for zero-dimensional host tensors (unless tensors
are concatenated) and host indices; so is the numpy view of a tensor that is not in host memory. `waits` collects what
would make the host wait for a GPU.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
HOST = torch.device("cpu")
ACROSS = ("aten.copy_", "aten._to_copy", "aten.set_")
UNKNOWN_SIZE = ("aten.nonzero.", "aten.masked_select", "aten._unique", "aten.unique", "aten.bincount")
READ = ("aten._local_scalar_dense", "aten.equal.", "aten.is_nonzero")
JOINING = ("aten.cat", "aten.stack")
INDEXING = ("aten.index.Tensor", "aten.index_put", "aten._index_put_impl_")


class Elsewhere(Tensor):
    """A CPU tensor that claims to lie on `DEVICE`."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made: Elsewhere = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=DEVICE,
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.held})"

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False  # torch would not initialise the values of meta tensors

    def tolist(self) -> Any:
        note_wait("tolist")
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            note_wait("numpy")
            return self.held.detach().numpy()
        raise TypeError("can't convert a tensor of another device to numpy: use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Refusing(TorchDispatchMode):
    """Intercepts operators, including those that create tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Apply the operator to the held tensors; new tensors lie where CUDA would put them."""
    name = str(func)
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    refuse_mixed(name, given)
    if waits_for_gpu(name, args, kwargs, given):
        note_wait(name)
    device = kwargs.get("device")
    if device is not None:
        kwargs = {**kwargs, "device": HOST}
    out = func(*tree_map(inner, args), **tree_map(inner, kwargs))
    elsewhere = [isinstance(tensor, Elsewhere) for tensor in given]
    if device is not None:
        there = torch.device(device).type == DEVICE.type
    elif name.startswith((*ACROSS, *INDEXING)):
        there = elsewhere[0]
    else:
        there = any(elsewhere)
    known = {id(inner(tensor)): tensor for tensor in given}  # an in-place operator returns one of these

    def outer(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return known.get(id(value)) if id(value) in known else Elsewhere(value) if there else value

    return tree_map(outer, out)


def inner(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value


def refuse_mixed(name: str, given: list[Tensor]) -> None:
    here = [tensor for tensor in given if not isinstance(tensor, Elsewhere)]
    if len(here) in (0, len(given)) or name.startswith(ACROSS):
        return
    if name.startswith(INDEXING) and isinstance(given[0], Elsewhere):
        here = [tensor for tensor in here if tensor.dtype not in (torch.bool, torch.int64)]
    if name.startswith(JOINING) or any(tensor.dim() for tensor in here) or not isinstance(given[0], Elsewhere):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found two")


_noted: list[str] | None = None


@contextmanager
def waits() -> Iterator[list[str]]:
    """What makes the host wait within the context: operators, with the line of ours that called each."""
    global _noted
    before, _noted = _noted, []
    try:
        yield _noted
    finally:
        _noted = before


def note_wait(what: str) -> None:
    if _noted is not None:
        ours = [frame for frame in traceback.extract_stack() if "/trm_core/" in frame.filename]
        _noted.append(f"{what} at {ours[-1].filename}:{ours[-1].lineno}: {ours[-1].line}" if ours else what)


def waits_for_gpu(name: str, args: Any, kwargs: dict[str, Any], given: list[Tensor]) -> bool:
    """Whether CUDA would make the host wait until everything queued is done: to read a value, to learn the size of a
    result, or to copy without `non_blocking`.
    """
    there = [isinstance(tensor, Elsewhere) for tensor in given]
    if name.startswith("aten.copy_"):
        return there[0] != there[1] and not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
    if name.startswith("aten._to_copy"):
        target = kwargs.get("device")
        crosses = target is not None and (torch.device(target).type == DEVICE.type) != there[0]
        # A copy to the host is only done once it has been waited for.
        return crosses and (there[0] or not kwargs.get("non_blocking"))
    if name.startswith(INDEXING):  # by a mask, whose size is not known, or by numbers that have to be copied
        which = [tensor for tensor in args[1] if tensor is not None]
        masked = any(tensor.dtype == torch.bool for tensor in which)
        return there[0] and (masked or not all(isinstance(tensor, Elsewhere) for tensor in which))
    return any(there) and name.startswith((*UNKNOWN_SIZE, *READ))


@contextmanager
def second_device() -> Iterator[torch.device]:
    """The device, which exists within the context."""
    make, convert, casting = torch.tensor, torch.as_tensor, torch.autocast

    def placed(values: Tensor, device: Any) -> Tensor:
        if device is None or torch.device(device).type != DEVICE.type:
            return values
        note_wait("a tensor of Python numbers")
        return Elsewhere(values)

    def tensor(data: Any, *, dtype: Any = None, device: Any = None, **others: Any) -> Tensor:
        return placed(make(data, dtype=dtype, **others), device)

    def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
        if isinstance(data, Tensor):
            return data.to(dtype=dtype or data.dtype, device=device or data.device)
        return placed(convert(data, dtype=dtype), device)

    def new_tensor(self: Tensor, data: Any, dtype: Any = None, device: Any = None) -> Tensor:
        return placed(make(data, dtype=dtype or self.dtype), device or self.device)

    def autocast(device_type: str, *given: Any, **named: Any) -> Any:
        return nullcontext() if device_type == DEVICE.type else casting(device_type, *given, **named)

    replaced: dict[Any, dict[str, Callable[..., Tensor]]] = {
        torch: {"tensor": tensor, "as_tensor": as_tensor},
        Tensor: {"new_tensor": new_tensor},
    }
    with pytest.MonkeyPatch.context() as patch, Refusing():
        patch.setattr(torch, "autocast", autocast)
        for place, functions in replaced.items():
            for name, function in functions.items():
                patch.setattr(place, name, function)
        yield DEVICE
