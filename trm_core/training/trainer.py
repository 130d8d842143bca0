"""The training loop of one process among others: step after step, and when to log, evaluate, save, roll back and stop.

Before each step the processes exchange a few numbers (`agreement`), so that they all do the same. Evaluation is passed
in as a function, so that the loop does not depend on how it is done.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trm_core.config.schema import Config
from trm_core.data.dataset import Dataset
from trm_core.data.sound import require_finite_split
from trm_core.distributed.collectives import of_first_rank, on_every_rank, world_size
from trm_core.errors import DataError
from trm_core.model.trm import TinyRecursiveModel
from trm_core.training import measure
from trm_core.training.agreement import Standing, exchange, require_alike
from trm_core.training.checkpoint_folders import HEALTHY
from trm_core.training.faults import NotFinite, all_finite
from trm_core.training.features import Features
from trm_core.training.keeping import Keeper
from trm_core.training.loggers import MetricsLogger
from trm_core.training.metrics import Averages
from trm_core.training.setup import build
from trm_core.training.step import StepTaker
from trm_core.training.stopping import StopFlag, reason_name

_ALIKE_INTERVAL = 100  # steps between two checks that the processes hold the same state

# Called by all ranks together, with the same result. Returns an empty dict if it was asked to stop.
Evaluate = Callable[[TinyRecursiveModel], dict[str, float]]
Log = Callable[[str], None]


@dataclass(frozen=True)
class Hooks:
    """What the loop calls. `evaluate` gets the model with the weights to use: averaged ones, if there are any."""

    evaluate: Evaluate | None = None
    on_step: Callable[[int, dict[str, float]], None] = lambda step, values: None
    log: Log = lambda message: None


class Trainer:
    """Built from a resolved config and open files; `run` trains to total_steps or until asked to stop."""

    def __init__(
        self,
        config: Config,
        features: Features,
        files: list[tuple[Dataset, float]],
        device: torch.device,
        run: Path | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        """run: where to save; None: nowhere. about: what checkpoints should say about model and data."""
        self.config, self.device = config, device
        self.files = [file for file, _ in files]
        self.state, episodes = build(config, features, files, device)
        self.taker = StepTaker(config, self.state, episodes)
        self.keeper = None if run is None else Keeper(run, config.training.keep_checkpoints, self.state, about or {})

    @property
    def notes(self) -> list[str]:
        """Choices made automatically, with their reasons."""
        return self.state.optimizers.notes

    def resume(self) -> list[str]:
        """Resume from the newest checkpoint that verifies; returns notes about it."""
        assert self.keeper is not None
        return self.keeper.resume()

    def standing(self, stop: int = 0) -> Standing:
        """Where all ranks stand. `stop`: this rank's reason to stop, or 0."""
        state = self.state
        can_replay = state.replay is not None and state.replay.num_ready(state.step) >= self.config.dqn.buffer_min_size
        saved = self.keeper is not None and self.keeper.saver.finished
        return exchange(state.carry.halted, can_replay, stop, saved)

    def run(self, logger: MetricsLogger, stop: StopFlag, hooks: Hooks) -> str:
        """Train. Returns 'done', 'stopped' (state saved) or 'interrupted' (state saved)."""
        training, state, keeper = self.config.training, self.state, self.keeper
        began, first, taken = time.perf_counter(), state.step, 0
        outcome, logging = "done", 0.0  # seconds that the previous line took
        line_began = began
        while state.step < training.total_steps:
            standing = self.standing(stop.reason)
            if keeper is not None and standing.saved:
                keeper.conclude(hooks.log)
            if standing.stop:
                outcome = "interrupted" if standing.stop == signal.SIGINT else "stopped"
                hooks.log(f"{reason_name(standing.stop)}: saving at step {state.step} and stopping")
                break
            if training.stop_at_step is not None and first < training.stop_at_step <= state.step:
                outcome = "stopped"
                break
            taken += 1
            try:
                self.taker.take(standing)
                state.faults.in_a_row = 0
            except NotFinite as fault:
                if self.skip(fault, logger, hooks.log):
                    continue
            step, healthy = state.step, state.faults.in_a_row == 0
            if world_size() > 1 and step % _ALIKE_INTERVAL == 0:
                require_alike(state.shared({}))
            if self.taker.logs_at(step):
                now = time.perf_counter()
                values = {**self.taker.averages.take(), **measure.numbers_now(state, self.config, self.device)}
                values |= state.faults.metrics()
                values["train/steps_per_sec"] = taken / max(time.perf_counter() - began, 1e-9)
                values["train/logging_time_share"] = logging / max(now - line_began, 1e-9)
                logger.log(step, values)
                hooks.on_step(step, values)
                line_began, logging = now, time.perf_counter() - now
            # A state saved among faults may be their cause, so it must not become the one to roll back to.
            due = healthy and step < training.total_steps
            if hooks.evaluate is not None and due and step % training.eval_interval == 0:
                self.evaluate(hooks.evaluate, logger, hooks.log)
            if keeper is not None and due and step % training.checkpoint_interval == 0:
                keeper.start(hooks.log)
        if keeper is not None:
            keeper.save(hooks.log)
        return outcome

    def evaluate(self, evaluate: Evaluate, logger: MetricsLogger, log: Log) -> None:
        """Evaluate with the averaged weights, if there are any; the best state so far is saved and kept. Samples that
        cannot be evaluated end the run, but what it has learned is saved.
        """
        state, keeper = self.state, self.keeper
        weights = nullcontext() if state.average is None else state.average.applied()
        try:
            with weights:
                values = evaluate(state.model)
        except DataError:
            if keeper is not None:
                keeper.save(log)
            raise
        values = of_first_rank(values)  # all ranks must agree whether this is the best
        if not values:
            return
        logger.log(state.step, values)
        puzzles = state.model.data.tokens
        # Solved puzzles count: nearly all cells may be right long before a single puzzle is.
        accuracy = values["eval/exact_accuracy" if puzzles else "eval/accuracy"]
        other = f"exact {accuracy:.4f}" if puzzles else f"opened {values['eval/opened']:.2f}"
        log(f"step {state.step}: accuracy {values['eval/accuracy']:.4f}, {other}")
        if keeper is not None and (keeper.best is None or accuracy > keeper.best):
            keeper.start(log, best=accuracy)

    def skip(self, fault: NotFinite, logger: MetricsLogger, log: Log) -> bool:
        """Skip a step that is not finite, or roll back to the last healthy checkpoint (True). Raises DivergedError to
        give up, and DataError if the data are to blame.
        """
        state, training, faults = self.state, self.config.training, self.state.faults
        on_every_rank(self.require_finite_samples)
        state.optimizers.zero_grad()
        if state.model.memory is not None:
            state.model.memory.forget_pending()
        state.carry = replace(fault.carry, halted=fault.carry.halted | fault.rows)
        state.step += 1
        faults.skip()
        log(f"warning: step {state.step}: {fault.what}; skipped")
        # After the last step, no further step would reveal that the state about to be saved is broken.
        broken = state.step >= training.total_steps and not all_finite(state.shared({}))
        if faults.in_a_row <= training.max_skipped_steps and not broken:
            return False
        if self.keeper is not None:
            self.keeper.conclude(log)
        if faults.rollbacks >= training.max_rollbacks:
            raise faults.diverged(state.step, fault.what, training, "training.max_rollbacks is reached")
        if self.keeper is None or not self.keeper.any_healthy():
            raise faults.diverged(state.step, fault.what, training, "there is no checkpoint to go back to")
        self.roll_back(self.keeper, logger, log)
        return True

    def require_finite_samples(self) -> None:
        """Raise DataError if a sample in the carry is not finite: no step can recover from that."""
        if not self.state.carry.capsules.finite():
            # The carry does not know where its rows come from, so the files are searched.
            require_finite_split(self.files, "train")

    def roll_back(self, keeper: Keeper, logger: MetricsLogger, log: Log) -> None:
        """Go back to the newest healthy checkpoint, at half the learning rates, with the data that would come next."""
        folder, notes = keeper.newest(HEALTHY)
        state, onward, faults = self.state, self.state.stream.state_dict(), self.state.faults
        saved, inexact = keeper.load(folder)
        state.restore(saved)
        keeper.drop_newer(folder)
        state.stream.load_state_dict(onward)
        state.faults = faults
        faults.roll_back()
        self.taker.averages = Averages()
        logger.rewind(state.step)
        for note in [*notes, *inexact, f"warning: back to {folder.name}, with {faults.rate:g} of the learning rates"]:
            log(note)
