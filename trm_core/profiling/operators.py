"""The operators in which a step spends its time, and a trace of a few steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile, tensorboard_trace_handler

from trm_core.profiling.attach import attached
from trm_core.profiling.stages import STAGES, StageClock, watched_in
from trm_core.profiling.steps import Stepper


@dataclass(frozen=True)
class Operator:
    """Time per step in an operator itself, excluding what it calls."""

    name: str
    milliseconds: float
    share: float  # of all operators
    calls: float


def activities_of(device: torch.device) -> list[ProfilerActivity]:
    """The activities that torch's profiler should record on a device."""
    both = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    return both if device.type == "cuda" else both[:1]


def operators_of(stepper: Stepper, steps: int, trace: Path | None) -> list[Operator]:
    """All operators, the slowest first. trace: a folder for `<host>_<process>.<time>.pt.trace.json`, which Perfetto,
    Chrome and TensorBoard's profiler read and in which stages have their names.
    """
    device = stepper.trainer.device
    clock = StageClock(device, named=True)
    handler = None if trace is None else tensorboard_trace_handler(str(trace))
    with (
        profile(activities=activities_of(device), profile_memory=trace is not None, on_trace_ready=handler) as profiler,
        attached(watched_in(stepper.trainer), clock.around),
    ):
        stepper.take(steps)
    times = times_of(profiler.key_averages(), device)
    total = sum(time for time, _ in times.values())
    found = [Operator(name, time / 1e3 / steps, time / total, calls / steps) for name, (time, calls) in times.items()]
    return sorted(found, key=lambda operator: -operator.milliseconds)


def times_of(events: Iterable[FunctionEventAvg], device: torch.device) -> dict[str, tuple[float, int]]:
    """Microseconds on the device in each operator itself, and its number of calls. GPU kernels are also events, but are
    left out because their time is included in the operators that launched them.
    """
    gpu = device.type == "cuda"
    return {
        str(event.key): (event.self_device_time_total if gpu else event.self_cpu_time_total, event.count)
        for event in events
        if event.key not in STAGES and event.device_type == DeviceType.CPU
    }
