"""The stages of a training step, and the clock that measures them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import record_function

from trm_core import losses
from trm_core.data.batch import CapsuleBatch
from trm_core.distributed.collectives import world_size
from trm_core.profiling.attach import Watched
from trm_core.profiling.steps import Discarded
from trm_core.training import measure, step
from trm_core.training.trainer import Trainer

FORWARD = "forward"
OTHER = "other"
STAGES = (
    "data",
    "host to device",
    "new samples",
    f"{FORWARD}: recursion",
    f"{FORWARD}: heads",
    f"{FORWARD}: memory",
    f"{FORWARD}: concepts",
    f"{FORWARD}: rest",
    "backward",
    "sync",  # communication between processes, including waiting for others' gradients once the own ones are done
    "dqn",
    "optimiser",
    "upkeep",
    "metrics",
    OTHER,
)


class StageClock:
    """Attributes all time to the innermost running stage.

    device: one that works asynchronously is synchronised at every change of stage, or its work would count towards
    whichever stage waits for it next. named: also mark the stages in a trace.
    """

    def __init__(self, device: torch.device, named: bool = False) -> None:
        self.device, self.named = device, named
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.running = [OTHER]
        self.since = 0.0
        self.last_gradient: float | None = None  # time of the newest gradient in this backward pass

    def start(self) -> None:
        """Start counting time."""
        self.since = self.now()

    def stop(self) -> None:
        """Stop counting time."""
        self.change()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def change(self) -> None:
        """Attribute the time since the last change to the stage that ran until now."""
        now = self.now()
        self.seconds[self.running[-1]] += now - self.since
        self.since = now

    def around(self, watched: Watched, work: Callable[[], Any]) -> Any:
        """Carry out a watched call, counting its time towards its stage."""
        if not self.running[-1].startswith(watched.within):
            return work()
        if watched.generator:
            return self.along(watched.stage, work)
        with self.inside(watched.stage):
            result = work()
            if watched.stage == "backward" and self.last_gradient is not None:
                self.waited_since(self.last_gradient)
            return result

    def waited_since(self, when: float) -> None:
        """Count the time since `when` as waiting for other processes instead of the running stage."""
        self.change()
        waited = self.since - when
        self.seconds[self.running[-1]] -= waited
        self.seconds["sync"] += waited

    def along(self, stage: str, work: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """Pass on the values of a generator; the stage ends when it is exhausted."""
        with self.inside(stage):
            yield from work()

    @contextmanager
    def inside(self, stage: str) -> Iterator[None]:
        """Run a stage nested in the current one."""
        self.change()
        self.running.append(stage)
        try:
            with record_function(stage) if self.named else nullcontext():
                yield
        finally:
            self.change()
            self.running.pop()


@contextmanager
def waiting_noted(of: Trainer, clock: StageClock) -> Iterator[None]:
    """Within the context, record on the clock when each backward pass computed its last gradient, if several processes
    train together.

    DDP exchanges gradients while later ones are being computed; any exchange left after the last one is waiting time.
    """
    if world_size() == 1:
        yield
        return

    def note(parameter: torch.Tensor) -> None:
        clock.last_gradient = clock.now()

    parameters = [p for p in of.taker.loss.parameters() if p.requires_grad]
    handles = [parameter.register_post_accumulate_grad_hook(note) for parameter in parameters]
    try:
        yield
    finally:
        clock.last_gradient = None
        for handle in handles:
            handle.remove()


def watched_in(of: Trainer) -> list[Watched]:
    """The calls that make up a step of this trainer, by stage. Time outside all of them is "other"."""
    taker, state = of.taker, of.state
    model = state.model
    found = [
        Watched(state.stream, "take", "data"),
        Watched(CapsuleBatch, "to", "host to device"),
        Watched(of, "standing", "new samples"),
        Watched(taker.episodes, "begin", "new samples"),
        Watched(taker, "differentiate", f"{FORWARD}: rest"),
        Watched(model.recursion, "forward", f"{FORWARD}: recursion", within=FORWARD),
        Watched(model, "read", f"{FORWARD}: heads", within=FORWARD),
        Watched(model.q_head, "read", f"{FORWARD}: heads", within=FORWARD),
        Watched(losses, "td_loss", "dqn"),
        Watched(torch.autograd, "backward", "backward"),
        Watched(dist, "all_reduce", "sync"),
        Watched(dist, "all_gather", "sync"),
        Watched(taker, "replayed", "dqn"),
        Watched(taker, "reprioritise", "dqn"),
        Watched(taker.episodes, "decide", "dqn"),
        Watched(taker, "update", "optimiser"),
        Watched(step, "keep_up", "upkeep"),
        Watched(taker, "add_movement", "metrics"),
        Watched(measure, "every_step", "metrics", generator=True),
        Watched(measure, "rewards", "metrics", generator=True),
        Watched(measure, "now", "metrics", generator=True),
        Watched(measure, "numbers_now", "metrics"),
        Watched(Discarded, "log", "metrics"),
        *(Watched(taker.averages, name, "metrics") for name in ("add", "add_mean", "add_vector", "settle", "take")),
        *(Watched(head, "forward", f"{FORWARD}: heads", within=FORWARD) for head in optional_heads(of)),
    ]
    if taker.gradients is not None:
        found.append(Watched(taker.gradients, "measure", "metrics"))
    if state.target is not None:
        found.append(Watched(state.target, "follow", "dqn"))
    if model.memory is not None:
        found.append(Watched(model.memory, "read", f"{FORWARD}: memory", within=FORWARD))
    if model.concepts is not None:
        found.append(Watched(model.concepts, "forward", f"{FORWARD}: concepts", within=FORWARD))
    return found


def optional_heads(of: Trainer) -> list[torch.nn.Module]:
    """Heads that only some models have."""
    model = of.state.model
    rebuilt = model.reconstruction
    heads: list[torch.nn.Module | None] = [model.mtp, model.cmi_head, model.sketch_decoder]
    heads += [] if rebuilt is None else [rebuilt.sketch, rebuilt.checksum]
    return [head for head in heads if head is not None]
