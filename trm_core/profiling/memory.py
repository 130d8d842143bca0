"""Bytes of live tensors over some steps, measured with torch's profiler, and the peak by owner."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from trm_core.training.memory_breakdown import bytes_by_owner
from trm_core.training.state import TrainingState

_POINTS = 60  # in the timeline shown


@dataclass(frozen=True)
class MemoryUse:
    """Bytes. `owners`: at the peak; "activations" is the remainder, all other tensors that a step creates and drops."""

    owners: dict[str, int]
    peak: int
    timeline: list[tuple[float, int]]  # milliseconds since the first step began, most live bytes around then


@dataclass
class Gradients:
    """When gradients appeared and were released, in nanoseconds since the epoch like the profiler's times."""

    came: list[tuple[int, int, int]] = field(default_factory=list)  # time, parameter, bytes
    gone: list[int] = field(default_factory=list)  # times at which the optimisers had finished with them

    def at(self, when: int) -> int:
        """Bytes of the gradients that existed at that time."""
        since = max((end for end in self.gone if end <= when), default=0)
        return sum({which: size for at, which, size in self.came if since < at <= when}.values())


@contextmanager
def gradients_noted(state: TrainingState) -> Iterator[Gradients]:
    """Record the gradients of the steps taken within the context."""
    found = Gradients()

    def note(parameter: Tensor) -> None:
        assert parameter.grad is not None
        found.came.append((time.time_ns(), id(parameter), parameter.grad.nbytes))

    parts = (*state.optimizers.model_params, *state.optimizers.policy_params)
    handles = [p.register_post_accumulate_grad_hook(note) for p in parts if p.requires_grad]
    last = state.optimizers.all[-1]
    handles.append(last.register_step_post_hook(lambda *_: found.gone.append(time.time_ns())))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def memory_of(state: TrainingState, take_steps: Callable[[], object], activities: list[ProfilerActivity]) -> MemoryUse:
    """Peak memory of `take_steps`, which takes some steps of `state`.

    The profiler sees what torch allocates and frees; what existed before is counted by owner. The profiler misses the
    release of memory whose allocation it did not see, so `take_steps` first runs once under another profiler, which
    replaces everything that a step replaces.
    """
    with profile(activities=activities, profile_memory=True):
        take_steps()
    owners = bytes_by_owner(state)
    held = sum(owners.values())
    with gradients_noted(state) as gradients, profile(activities=activities, profile_memory=True) as profiler:
        take_steps()
    assert profiler.profiler is not None
    place = DeviceType.CUDA if ProfilerActivity.CUDA in activities else DeviceType.CPU
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == place
    )
    live, lived = held, []
    for when, size in changes:
        live += size
        lived.append((when, live))
    when, peak = max(lived, key=lambda point: point[1])
    there = gradients.at(when)
    return MemoryUse({**owners, "gradients": there, "activations": max(peak - held - there, 0)}, peak, shown(lived))


def shown(lived: list[tuple[int, int]]) -> list[tuple[float, int]]:
    """The maximum within each of `_POINTS` equal time spans."""
    begin, end = lived[0][0], lived[-1][0]
    width = max(end - begin, 1) / _POINTS
    most: dict[int, int] = {}
    for when, size in lived:
        place = min(int((when - begin) / width), _POINTS - 1)
        most[place] = max(most.get(place, 0), size)
    return [(place * width / 1e6, size) for place, size in sorted(most.items())]
