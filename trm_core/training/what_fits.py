"""What a config that ran out of memory would have needed, and overrides with which it fits, both by the estimate.

The estimate imports torch's compiler and runs a step on fake tensors. A process whose allocations fail has no memory
for that: Python code then fails anywhere, with any exception, or crashes. So a child process makes the estimate.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass

from trm_core.child_process import command_of
from trm_core.config.schema import Config
from trm_core.distributed.collectives import world_size
from trm_core.errors import NEEDS_LESS_MEMORY
from trm_core.model.data_shape import DataShape
from trm_core.training.estimate import estimate_memory
from trm_core.training.features import Features

# A suggestion needs at most this share of the estimate for the config that did not fit: if that estimate is below what
# was available, it is too low, and only less can fit.
_LESS = 0.8
_ROWS = 8  # batch sizes are suggested in multiples of this, and parts of a batch are no smaller
_SLOTS = 1000  # buffer sizes are suggested in multiples of this
# Share of the available memory that may be planned for. The rest is for what no estimate counts: workspaces, and holes
# between freed tensors, of which a CPU's allocator leaves more.
_USABLE = {"cuda": 0.9, "cpu": 0.7}
_PATIENCE_S = 120


@dataclass(frozen=True)
class Fit:
    """`needs`: bytes by owner, named as in `MemoryEstimate`; empty if no estimate could be made. `hint`: what to
    change.
    """

    needs: dict[str, int]
    hint: str


def fit_by_child(config: Config, features: Features, device: str, available: int) -> Fit:
    """`fit` in a child process. Survives whatever happens to that process."""
    request = {
        "config": config.model_dump(mode="json"),
        "features": {**asdict(features), "status": []},
        "device": device,
        "available": available,
        "ranks": world_size(),
    }
    command = command_of(__name__, "child", json.dumps(request))
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return Fit({}, NEEDS_LESS_MEMORY)
    return Fit(**json.loads(done.stdout)) if done.returncode == 0 else Fit({}, NEEDS_LESS_MEMORY)


def child(request: str) -> int:
    """Runs in the child process; the answer goes to stdout."""
    asked = json.loads(request)
    features = asked["features"]
    features["shape"] = DataShape(**features["shape"])
    found = fit(
        Config.model_validate(asked["config"]),
        Features(**features),
        asked["device"],
        asked["available"],
        asked["ranks"],
    )
    print(json.dumps(asdict(found)))
    return 0


def fit(config: Config, features: Features, device: str, available: int, ranks: int) -> Fit:
    """What fits, for a config for which `available` bytes in each of `ranks` processes were not enough."""

    def total(changed: Config) -> int:
        return estimate_memory(changed, features, device, ranks).total

    estimate = estimate_memory(config, features, device, ranks)
    budget = min(available * _USABLE.get(device, 0.7), _LESS * estimate.total)
    changed = override_that_fits(config, total, budget, estimate.replay, ranks)
    parts = parts_that_fit(config, total, budget, ranks)
    lines = []
    if changed is not None:
        lines.append(f"by the estimate this fits, with {changed[1] / 1e6:,.1f} MB: {changed[0]}")
    if parts is not None:
        lines.append(
            f"by the estimate this fits, with the same batch and gradient: training.accumulation_steps={parts}"
        )
    none = "no batch or buffer size fits by the estimate: a smaller arch.hidden_size or arch.num_layers needs less"
    return Fit(asdict(estimate), "\n".join(lines) or none)


def override_that_fits(
    config: Config, total: Callable[[Config], int], budget: float, replay: int, ranks: int
) -> tuple[str, int] | None:
    """Overrides, and the bytes they need: the largest batch that fits, the largest replay buffer that fits, or else
    both smaller. total: the bytes of a config; replay: those of the buffer, which is tried first if it takes more than
    half.
    """
    rows, slots = config.training.global_batch_size, config.dqn.buffer_capacity
    unit = math.lcm(_ROWS, ranks * config.training.accumulation_steps)

    def sized(batch: int, capacity: int) -> Config:
        training = config.training.model_copy(update={"global_batch_size": batch})
        dqn = config.dqn.model_copy(update={"buffer_capacity": capacity})
        return config.model_copy(update={"training": training, "dqn": dqn})

    def fits(batch: int, capacity: int) -> bool:
        return total(sized(batch, capacity)) <= budget

    def least_slots(batch: int) -> int:
        """What `resolve_features` and the schema require, rounded up."""
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


def parts_that_fit(config: Config, total: Callable[[Config], int], budget: float, ranks: int) -> int | None:
    """The fewest `training.accumulation_steps`, more than now, with which the batch fits; None if none do."""
    training = config.training
    rows = training.global_batch_size
    candidates = [
        parts
        for parts in range(training.accumulation_steps + 1, rows // (ranks * _ROWS) + 1)
        if rows % (ranks * parts) == 0
    ]

    def fits(place: int) -> bool:
        changed = training.model_copy(update={"accumulation_steps": candidates[-place]})
        return total(config.model_copy(update={"training": changed})) <= budget

    # Each check traces a step, and more parts need less memory: bisection, after checking the largest number first.
    if not candidates or not fits(1):
        return None
    return candidates[-_largest(len(candidates), fits)]


def _largest(most: int, holds: Callable[[int], bool]) -> int:
    """The largest n in 1..most for which `holds` is true; 0 if there is none. True up to some n, false after it."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
