"""`trm profile`: where a training step spends time and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from trm_core.distributed.collectives import world_size
from trm_core.profiling.attach import attached
from trm_core.profiling.memory import MemoryUse, memory_of
from trm_core.profiling.operators import Operator, activities_of, operators_of
from trm_core.profiling.rate import flops_of_step, matrix_rate
from trm_core.profiling.stages import OTHER, StageClock, waiting_noted, watched_in
from trm_core.profiling.steps import Stepper

_ROUNDS = 2
_PROFILED = 4  # steps under torch's profiler, which keeps every event


@dataclass(frozen=True)
class StageTime:
    """The time of one stage, per step."""

    name: str
    milliseconds: float
    share: float  # of the watched step


@dataclass(frozen=True)
class Timing:
    """Times are per step, in milliseconds."""

    steps: int  # timed without watching stages
    step_ms: float  # of these steps
    watched_ms: float  # of as many steps with stages watched, run alternately with these
    stages: list[StageTime]
    accounted: float  # share of a watched step that lies in a named stage


@dataclass(frozen=True)
class Profile(Timing):
    """The timing of a step, with its operators, memory and arithmetic."""

    operators: list[Operator]
    memory: MemoryUse
    flops: float  # of a step
    rate: float  # floating-point operations per second of a large product on this machine, in `precision`
    precision: str  # `training.precision`
    threads: int
    processes: int  # training together; everything but `batch` is of one process
    batch: int  # rows of all processes
    traces: list[Path]

    @property
    def utilisation(self) -> float:
        """Model FLOPs utilisation: the share of `rate` that a step reaches."""
        return self.flops / (self.step_ms / 1e3) / self.rate

    def milliseconds(self, stage: str) -> float:
        """Milliseconds of all stages whose name begins with `stage`."""
        return sum(one.milliseconds for one in self.stages if one.name.startswith(stage))


def whole_intervals(steps: int, log_interval: int) -> int:
    """`steps`, rounded up to whole logging intervals so that the share of logged steps is that of training, unless one
    interval exceeds ten times `steps`.
    """
    return -(-steps // log_interval) * log_interval if log_interval <= 10 * steps else steps


def time_steps(stepper: Stepper, steps: int, log: Callable[[str], None]) -> Timing:
    """Time the steps of a stepper that has been warmed up, and their stages."""
    of = stepper.trainer
    steps = -(-whole_intervals(steps, of.config.training.log_interval) // _ROUNDS)
    steps = whole_intervals(steps, of.config.training.log_interval)
    log(f"timing {_ROUNDS * steps} steps, and as many with each stage timed")
    clock = StageClock(of.device)
    clean = watched = 0.0
    for _ in range(_ROUNDS):
        clean += stepper.take(steps).seconds
        with attached(watched_in(of), clock.around), waiting_noted(of, clock):
            clock.start()
            watched += stepper.take(steps).seconds
            clock.stop()
    count, total = _ROUNDS * steps, sum(clock.seconds.values())
    return Timing(
        steps=count,
        step_ms=1e3 * clean / count,
        watched_ms=1e3 * watched / count,
        stages=[StageTime(name, 1e3 * time / count, time / total) for name, time in clock.seconds.items()],
        accounted=1.0 - clock.seconds[OTHER] / total,
    )


def profile_steps(stepper: Stepper, steps: int, trace: Path | None, log: Callable[[str], None]) -> Profile:
    """Profile a stepper that has been warmed up. trace: folder for the traces."""
    of = stepper.trainer
    known = set() if trace is None else set(trace.glob("*.pt.trace.json"))
    timing = time_steps(stepper, steps, log)
    log("counting operators, memory and operations")
    operators = operators_of(stepper, _PROFILED, trace)
    logged = min(max(_PROFILED, of.config.training.log_interval), timing.steps // _ROUNDS)
    memory = memory_of(of.state, lambda: stepper.take(logged), activities_of(of.device))
    return Profile(
        **vars(timing),
        operators=operators,
        memory=memory,
        flops=flops_of_step(stepper),
        rate=matrix_rate(of.device, of.config.training.precision),
        precision=of.config.training.precision,
        threads=torch.get_num_threads(),
        processes=world_size(),
        batch=of.config.training.global_batch_size,
        traces=[] if trace is None else sorted(set(trace.glob("*.pt.trace.json")) - known),
    )
