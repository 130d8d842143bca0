"""Config changes that may make training faster, each measured against the config as it is.

The profile decides which are tried first (pipeline.md, Workflow 7); the measured gain alone decides which are
recommended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import torch

from trm_core.config.schema import Config
from trm_core.data.dataset import Dataset
from trm_core.devices import reduced_precision
from trm_core.errors import ConfigError
from trm_core.profiling.compare import alternate, ratio
from trm_core.profiling.profile import Profile
from trm_core.profiling.steps import Stepper
from trm_core.training.features import Features, resolve_features

_CONFIDENCE = 0.99  # of intervals: with ten changes tried, one false gain in twenty would be too many
_LEAST, _MOST = 8, 40  # blocks compared
_BLOCK = 0.1  # shortest duration of a block of steps, in seconds
_LONGEST_BLOCK = 50  # steps


@dataclass(frozen=True)
class Change:
    """One override."""

    override: str
    config: Config
    threads: int
    why: str  # what in the profile suggests it; "" if nothing does
    price: str  # what it changes besides the time


@dataclass(frozen=True)
class Gain:
    """Speed relative to the config as it is: medians with their 99 % intervals."""

    change: Change
    steps: tuple[float, float, float]  # steps per second: ratio, low, high
    samples: tuple[float, float, float]  # the same for samples per second
    blocks: int  # compared

    @property
    def recommended(self) -> bool:
        return self.samples[1] > 1.0


def changes(config: Config, found: Profile, device: torch.device) -> list[Change]:
    """The changes to try, with those first that the profile suggests."""
    return sorted(_changes(config, found, device), key=lambda change: not change.why)


def _changes(config: Config, found: Profile, device: torch.device) -> Iterator[Change]:
    training, threads = config.training, found.threads

    def change(section: str, key: str, value: int | bool | str, why: str, price: str) -> Change:
        part = getattr(config, section).model_copy(update={key: value})
        text = str(value).lower() if isinstance(value, bool) else str(value)
        return Change(f"{section}.{key}={text}", config.model_copy(update={section: part}), threads, why, price)

    data = found.milliseconds("data") / found.watched_ms
    why = f"data takes {100 * data:.0f} % of a step" if data > 0.2 else ""
    yield change("data", "num_workers", 2 if config.data.num_workers != 2 else 0, why, "two more processes")
    forward, backward = found.milliseconds("forward"), found.milliseconds("backward")
    why = f"forward takes {forward:.0f} ms" if forward > 200 else ""
    why = f"backward takes {backward:.0f} ms" if backward > 300 and not why else why
    batch = training.global_batch_size
    for rows in (batch // 2, batch * 2):
        if rows % training.accumulation_steps == 0 and rows > 0:
            yield change("training", "global_batch_size", rows, why, "another batch learns differently")
    if training.precision == "float32":
        reduced = reduced_precision(device)
        price = {"bfloat16": "products with 8 bits of mantissa", "float16": "products in float16's range"}[reduced]
        yield change("training", "precision", reduced, why, price)
    if not training.compile:
        yield change("training", "compile", True, why, "the first steps wait for the compiler")
    if training.activation_checkpointing:
        yield change("training", "activation_checkpointing", False, why, "more memory")
    count = 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    while count <= cores:
        if count != threads:
            one = change("training", "threads", count, why, "")
            yield Change(one.override, one.config, count, why, one.price)
        count *= 2
    metrics = found.milliseconds("metrics")
    why = f"metrics take {metrics:.0f} ms" if metrics > 10 else ""
    if training.log_interval < 10:
        yield change("training", "log_interval", 10, why, "a line of metrics every 10 steps")
    if training.monitor_gradients:
        yield change("training", "monitor_gradients", False, why, "no train/grad/ metrics")


def possible(change: Change, file: Dataset) -> bool:
    """Whether the data and the rest of the config allow the change."""
    try:
        resolve_features(change.config, file)
    except ConfigError:
        return False
    return True


def try_change(
    base: Stepper,
    change: Change,
    found: Profile,
    features: Features,
    files: list[tuple[Dataset, float]],
    seconds: float,
) -> Gain:
    """Time blocks of steps with and without the change, alternately and in this process, for about `seconds`."""
    with closing(Stepper(change.config, features, files, base.trainer.device)) as other:
        other.warm()
        intervals = base.trainer.config.training.log_interval, change.config.training.log_interval
        steps = max(min(max(intervals), _LONGEST_BLOCK), -(-int(1e3 * _BLOCK) // max(int(found.step_ms), 1)))
        works = {"base": _block(base, steps, found.threads), "other": _block(other, steps, change.threads)}
        began = time.perf_counter()
        alternate(works, 0)
        blocks = min(max(int(seconds / (time.perf_counter() - began)), _LEAST), _MOST)
        times = alternate(works, blocks)
    torch.set_num_threads(found.threads)
    gain = ratio(times["base"], times["other"], confidence=_CONFIDENCE)
    fast = (gain["ratio"], gain["low"], gain["high"])
    rows = change.config.training.global_batch_size / found.batch
    return Gain(change, fast, (fast[0] * rows, fast[1] * rows, fast[2] * rows), blocks)


def _block(stepper: Stepper, steps: int, threads: int) -> Callable[[], object]:
    def take() -> None:
        torch.set_num_threads(threads)
        stepper.take(steps)

    return take
