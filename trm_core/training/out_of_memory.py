"""Running out of memory: who took it, what there was, and an override that fits by the estimate."""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from trm_core.config.schema import Config
from trm_core.distributed.collectives import world_size
from trm_core.errors import ResourceError, is_out_of_memory
from trm_core.training.estimate import estimate_memory
from trm_core.training.features import Features
from trm_core.training.memory_breakdown import available_memory, bytes_by_owner
from trm_core.training.state import TrainingState

_OWNERS = {
    "optimizer": "optimiser state",
    "target": "target network",
    "memory_bank": "memory bank",
    "snapshot": "a save's copy",
}  # names of the estimate, as the breakdown's
# Of the estimate for what did not fit: where that is below what was available it is too low, and the way is down.
_LESS = 0.8
_ROWS = 8  # batch sizes are suggested in multiples of it, and parts of a batch are no smaller
_SLOTS = 1000  # buffer sizes, too
# Of what is available. The rest is for what no estimate counts: workspaces, and holes between freed tensors, of which a
# CPU's allocator leaves more.
_USABLE = {"cuda": 0.9, "cpu": 0.7}


@contextmanager
def memory_explained(
    config: Config, features: Features, device: torch.device, state: TrainingState | None = None
) -> Iterator[None]:
    """Turn an allocation that is refused inside into a ResourceError. `state`: what is trained, once it exists."""
    # Before, as holes in the heap make a process look larger than what it needs.
    available = available_memory(device, 0 if state is None else sum(bytes_by_owner(state).values()))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        # The frames that failed hold their tensors while the error lives; what follows needs some memory, too.
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
    """The error to show for `error`, an allocation that was refused."""
    estimate = estimate_memory(config, features, device.type)
    if state is None:
        when, what = "before training", "estimated, as nothing was measured yet"
        sizes = {_OWNERS.get(name, name): getattr(estimate, name) for name in estimate.__dataclass_fields__}
    else:
        sizes = bytes_by_owner(state)
        when, what = f"after step {state.step}", "measured"
        if device.type == "cuda":
            sizes["activations"] = max(torch.cuda.max_memory_allocated(device) - sum(sizes.values()), 0)
            what += ", activations as the rest of the measured peak"
        else:
            sizes["activations"] = estimate.activations
            what += ", activations estimated"
    usable, limit = available
    asked = re.search(r"(?:tried|unable) to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    largest_first = sorted(sizes.items(), key=lambda item: -item[1])
    parts = ", ".join(f"{owner} {_mb(size)}" for owner, size in largest_first if size > 0)
    return ResourceError(
        f"out of memory on {device}, {when}{f', allocating {asked[1]}' if asked else ''}\n"
        f"tensors ({what}), MB: {parts}; {_mb(sum(sizes.values()))} in all, {_mb(usable)} available {limit}",
        hint=_hint(config, features, device.type, usable * _USABLE.get(device.type, 0.7)),
    )


def _hint(config: Config, features: Features, device: str, budget: float) -> str:
    def total(changed: Config) -> int:
        return estimate_memory(changed, features, device).total

    estimate = estimate_memory(config, features, device)
    budget = min(budget, _LESS * estimate.total)
    changed, parts = override_that_fits(config, total, budget, estimate.replay), parts_that_fit(config, total, budget)
    if changed is None and parts is None:
        return "no batch or buffer size fits by the estimate: a smaller arch.hidden_size or arch.num_layers needs less"
    lines = [] if changed is None else [f"by the estimate this fits, with {_mb(changed[1])} MB: {changed[0]}"]
    if parts is not None:
        lines.append(
            f"by the estimate this fits, with the same batch and gradient: training.accumulation_steps={parts}"
        )
    return "\n".join(lines)


def override_that_fits(
    config: Config, total: Callable[[Config], int], budget: float, replay: int
) -> tuple[str, int] | None:
    """Overrides, and the bytes they need: the largest batch, the largest replay buffer, or else a batch with a smaller
    buffer. `total`: the bytes of a config; `replay`: those of the buffer, tried first where it is the larger half.
    """
    rows, slots = config.training.global_batch_size, config.dqn.buffer_capacity
    unit = math.lcm(_ROWS, world_size() * config.training.accumulation_steps)

    def sized(batch: int, capacity: int) -> Config:
        training = config.training.model_copy(update={"global_batch_size": batch})
        dqn = config.dqn.model_copy(update={"buffer_capacity": capacity})
        return config.model_copy(update={"training": training, "dqn": dqn})

    def fits(batch: int, capacity: int) -> bool:
        return total(sized(batch, capacity)) <= budget

    def least_slots(batch: int) -> int:
        """What `resolve_features` and the schema ask for, rounded up."""
        least = max(2 * batch * config.arch.max_steps, config.dqn.buffer_min_size)
        return -(-least // _SLOTS) * _SLOTS

    def smaller_batch() -> tuple[int, int]:
        return unit * _largest((rows - 1) // unit, lambda n: fits(n * unit, slots)), slots

    def smaller_buffer(batch: int = rows) -> tuple[int, int]:
        capacity = _SLOTS * _largest((slots - 1) // _SLOTS, lambda n: fits(batch, n * _SLOTS))
        return batch, capacity if capacity >= least_slots(batch) else 0

    def both() -> tuple[int, int]:
        return smaller_buffer(unit * _largest(rows // unit, lambda n: smaller_buffer(n * unit)[1] > 0))

    ways: list[Callable[[], tuple[int, int]]] = [smaller_batch]
    if replay > 0:
        ways.insert(0 if replay > total(config) / 2 else 1, smaller_buffer)
        ways.append(both)
    for way in ways:
        batch, capacity = way()
        if batch > 0 and capacity > 0:
            overrides = [f"training.global_batch_size={batch}"] if batch != rows else []
            overrides += [f"dqn.buffer_capacity={capacity}"] if capacity != slots else []
            return " ".join(overrides), total(sized(batch, capacity))
    return None


def parts_that_fit(config: Config, total: Callable[[Config], int], budget: float) -> int | None:
    """The fewest `training.accumulation_steps`, more than now, with which the batch fits; None if none do."""
    training, ranks = config.training, world_size()
    for parts in range(training.accumulation_steps + 1, training.global_batch_size // (ranks * _ROWS) + 1):
        changed = config.model_copy(update={"training": training.model_copy(update={"accumulation_steps": parts})})
        if training.global_batch_size % (ranks * parts) == 0 and total(changed) <= budget:
            return parts
    return None


def _largest(most: int, holds: Callable[[int], bool]) -> int:
    """The largest n in 1..most for which `holds`, which holds up to some n and for none after; 0: for none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f}"
