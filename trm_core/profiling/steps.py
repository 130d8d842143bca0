"""Take training steps with the trainer's own loop, but without a run directory."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Mapping

import torch

from trm_core.config.schema import Config
from trm_core.data.dataset import Dataset
from trm_core.errors import DivergedError
from trm_core.training.features import Features
from trm_core.training.stopping import StopFlag
from trm_core.training.trainer import Hooks, Trainer

_WARM_STEPS = 3
_MOST_WARM_STEPS = 100  # a replay buffer that is not ready by then never will be
_FAR = 10**9


class Discarded:
    """Formats metrics as in metrics.jsonl and discards them: writing to disk is not part of a step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        json.dumps({"step": step, **{n: v if math.isfinite(v) else None for n, v in values.items()}})

    def rewind(self, step: int) -> None:
        raise AssertionError("without checkpoints nothing goes back")

    def close(self) -> None:
        pass


class StopAfter(StopFlag):
    """Ends the training loop after `steps` steps. The loop asks before each step, so `began` has the start times of all
    steps, and the end of the last.
    """

    def __init__(self, steps: int, device: torch.device) -> None:
        super().__init__()
        self.steps, self.device = steps, device
        self.began: list[float] = []

    @property
    def reason(self) -> int:
        if len(self.began) in (0, self.steps) and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.began.append(time.perf_counter())
        return signal.SIGTERM if len(self.began) > self.steps else super().reason

    @property
    def seconds(self) -> float:
        return self.began[-1] - self.began[0]


class Stepper:
    """A trainer that takes a given number of steps on demand. It must be closed, as it may have worker processes."""

    def __init__(
        self, config: Config, features: Features, files: list[tuple[Dataset, float]], device: torch.device
    ) -> None:
        self.trainer = Trainer(endless(config), features, files, device)

    def take(self, steps: int) -> StopAfter:
        """Take the steps and return when each began. Raises DivergedError if one was not finite."""
        stop = StopAfter(steps, self.trainer.device)
        self.trainer.run(Discarded(), stop, Hooks())
        if self.trainer.state.faults.skipped:
            raise DivergedError(
                f"a step before step {self.trainer.state.step} was not finite: its time is meaningless",
                hint="lower training.base_lr",
            )
        return stop

    def warm(self) -> None:
        """Take steps until the optimisers have their state and there are transitions to replay."""
        self.take(_WARM_STEPS)
        for _ in range(_MOST_WARM_STEPS):
            if self.trainer.state.replay is None or self.trainer.standing().can_replay:
                return
            self.take(1)

    def close(self) -> None:
        self.trainer.state.stream.close()


def endless(config: Config) -> Config:
    """The config changed so that the run does not end during a measurement and Q-learning begins early."""
    rows = config.training.global_batch_size
    training = config.training.model_copy(update={"total_steps": _FAR, "stop_at_step": None})
    dqn = config.dqn.model_copy(update={"buffer_min_size": min(config.dqn.buffer_min_size, max(rows, 2))})
    return config.model_copy(update={"training": training, "dqn": dqn})
