"""Running out of memory: what took it, how much there was, and an override that fits by the estimate."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trm_core.config.schema import Config
from trm_core.errors import ResourceError, is_out_of_memory
from trm_core.training.features import Features
from trm_core.training.memory_breakdown import available_memory, bytes_by_owner
from trm_core.training.state import TrainingState
from trm_core.training.what_fits import fit_by_child

_OWNERS = {
    "optimizer": "optimiser state",
    "target": "target network",
    "memory_bank": "memory bank",
    "snapshot": "a save's copy",
}  # the estimate's names -> the breakdown's


@contextmanager
def memory_explained(
    config: Config, features: Features, device: torch.device, state: TrainingState | None = None
) -> Iterator[None]:
    """Turn a failed allocation inside the context into a ResourceError. `state`: what is trained, once it exists."""
    # Measured beforehand, because later, holes in the heap make a process look larger than what it needs.
    available = available_memory(device, 0 if state is None else sum(bytes_by_owner(state).values()))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        # The failed frames keep their tensors alive as long as the error, and what follows needs some memory too.
        traceback.clear_frames(error.__traceback__)
        raise explain(error, config, features, device, state, available) from error


def explain(
    error: BaseException,
    config: Config,
    features: Features,
    device: torch.device,
    state: TrainingState | None,
    available: tuple[int, str],
) -> ResourceError:
    """The error to show for `error`, a failed allocation."""
    usable, limit = available
    fit = fit_by_child(config, features, device.type, usable)
    if state is None:
        when, what = "before training", "estimated, as nothing was measured yet"
        sizes = {_OWNERS.get(name, name): size for name, size in fit.needs.items()}
    else:
        sizes = bytes_by_owner(state)
        when, what = f"after step {state.step}", "measured"
        if device.type == "cuda":
            sizes["activations"] = max(torch.cuda.max_memory_allocated(device) - sum(sizes.values()), 0)
            what += ", activations as the rest of the measured peak"
        elif "activations" in fit.needs:
            sizes["activations"] = fit.needs["activations"]
            what += ", activations estimated"
    asked = re.search(r"(?:tried|unable) to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    unused = re.search(r"([\d.]+ \w+) is reserved by PyTorch but unallocated", str(error))
    pieces = ""
    if asked and unused and _bytes(unused[1]) >= _bytes(asked[1]):
        pieces = (
            f"\n{unused[1]} more are reserved but free, in pieces that are too small: "
            "PYTORCH_ALLOC_CONF=expandable_segments:True in the environment may help before anything is made smaller"
        )
    largest_first = sorted(sizes.items(), key=lambda item: -item[1])
    parts = ", ".join(f"{owner} {_mb(size)}" for owner, size in largest_first if size > 0)
    known = f"tensors ({what}), MB: {parts}; {_mb(sum(sizes.values()))} in all, " if sizes else "MB: "
    return ResourceError(
        f"out of memory on {device}, {when}{f', allocating {asked[1]}' if asked else ''}\n"
        f"{known}{_mb(usable)} available {limit}{pieces}",
        hint=fit.hint,
    )


def _bytes(size: str) -> float:
    """Of a size as CUDA's allocator writes it: 20.00 GiB."""
    number, unit = size.split()
    return float(number) * 1024 ** ("KMGT".find(unit[0]) + 1)


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f}"
