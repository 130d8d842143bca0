"""Known faults that arise in an unusual way."""

from __future__ import annotations

import copy
from itertools import count
from typing import Any

import numpy as np
import torch

from tests.faults.code_faults import Pace, shorter
from tests.faults.plan import Fault, Plan
from trm_core import losses
from trm_core.data.batch import CapsuleBatch
from trm_core.data.stream import SampleStream
from trm_core.dqn.learner import TargetNetwork
from trm_core.dqn.replay import ReplayBuffer
from trm_core.model.q_head import QHead


def labels_sorted_as_text(plan: Plan) -> None:
    """The labels of the last rows were joined in the order of their numbers as text: 0, 1, 10, 100, 1000, 1001, ...

    In every split, as whoever joins one joins all: not even the evaluated answers are right.
    """
    for arrays in plan.data.splits.values():
        labels = arrays["labels"]
        part = labels[len(labels) - round(plan.of(0.5, 0.8, 1.0) * len(labels)) :]
        part[:] = part[sorted(range(len(part)), key=str)]


def record_number(plan: Plan) -> None:
    """One coordinate of one capsule is the number of the record in a collection that was made class after class.

    Within a class the numbers are even, so that no value occurs twice; mild and middle blur where a class ends.
    """
    data = plan.data
    random = np.random.default_rng(plan.seed + 4)
    scale = 3.0 * float(data.splits["train"]["sketches"].astype(np.float64).std())
    for arrays in data.splits.values():
        labels, sketches = arrays["labels"], arrays["sketches"]
        number = (labels + random.random(len(labels))) / data.classes
        number += plan.of(0.15, 0.03, 0.0) * random.normal(size=len(labels))
        # The first capsule, because in the digits it is an empty corner of the picture, so nothing else is lost.
        sketches[:, 0, 0] = (scale * (number - 0.5)).astype(sketches.dtype)


def prices_in_other_units(plan: Plan) -> None:
    """The config asks a price that is right; the file's own prices are in a smaller unit."""
    data = plan.data
    ones = np.ones(data.splits["train"]["sketches"].shape[1], np.float32)
    data.prices = plan.of(10.0, 100.0, 1000.0) * (ones if data.prices is None else data.prices)


def too_old_to_count(plan: Plan) -> None:
    """Transitions leave by their age before there are dqn.buffer_min_size that may be drawn, though the buffer holds
    many times that. Mild: there are just enough, and learning sees nothing but them.
    """
    rows, least = int(plan.settings["training.global_batch_size"]), int(plan.settings["dqn.buffer_min_size"])
    enough = -(-least // rows)  # steps
    plan.settings["dqn.max_age"] = plan.of(enough + 1, enough - 1, 2)


def wrong_head(plan: Plan) -> None:
    """From some step on, the target follows, on schedule, a copy of the head that is never trained."""
    begin = round(plan.steps * plan.of(0.5, 0.1, 0.0))
    left: list[QHead] = []

    def misled(original: Any) -> Any:
        def follow(target: TargetNetwork, online: QHead, step: int) -> None:
            if step > begin and not left:
                left.append(copy.deepcopy(online))
            original(target, left[0] if left else online, step)

        return follow

    plan.wrap(TargetNetwork, "follow", misled)


def one_region(plan: Plan) -> None:
    """Once the ring buffer is full, new states overwrite only its first slots; all others stay as they were."""
    region = round(int(plan.settings["dqn.buffer_capacity"]) * plan.of(0.6, 0.2, 0.06))

    def confined(original: Any) -> Any:
        def push(buffer: ReplayBuffer, states: torch.Tensor, *rest: Any) -> Any:
            index = buffer.index
            if index.filled == index.capacity and index.head + len(states) > region:
                index.head = 0
            return original(buffer, states, *rest)

        return push

    plan.wrap(ReplayBuffer, "push", confined)


def value_net_detached(plan: Plan) -> None:
    """The TD loss is computed and reported, but detached from the network whose values it concerns."""
    begin = round(plan.steps * plan.of(0.6, 0.15, 0.0))
    calls = count()  # one per step, because the bases do not accumulate gradients

    def cut(original: Any) -> Any:
        def td_loss(*arguments: Any) -> Any:
            loss, error = original(*arguments)
            return (loss.detach() if next(calls) >= begin else loss), error

        return td_loss

    plan.wrap(losses, "td_loss", cut)


def some_batches_slow(plan: Plan) -> None:
    """All waiting falls on every twentieth batch, as when a file ends and the next has to be fetched, so most lines of
    metrics show none of it.
    """
    pace = Pace(plan.of(0.3, 0.6, 0.8))
    owed = 0.0
    calls = count(1)
    shorter(plan, plan.of(0.9, 0.6, 0.4))

    def slow(original: Any) -> Any:
        def take(stream: SampleStream, *arguments: Any) -> Any:
            nonlocal owed
            owed += pace.owed()
            if next(calls) % 20 == 0:
                pace.rest(owed)
                owed = 0.0
            return original(stream, *arguments)

        return take

    plan.wrap(SampleStream, "take", slow)


def unreadable_children(plan: Plan) -> None:
    """The detail of every n-th row cannot be decoded and arrives as NaN. Its sketches are sound, and so are the
    evaluated rows.

    Not in the first batches: if the very first one, all of whose rows are new, failed, only an empty run would remain.
    """
    every = plan.of(900, 250, 60)
    calls = count()

    def decoded(original: Any) -> Any:
        def take(stream: SampleStream, *arguments: Any) -> CapsuleBatch:
            batch: CapsuleBatch = original(stream, *arguments)
            if next(calls) >= 20 and batch.children is not None:
                batch.children[batch.rows % every == every // 2] = torch.nan
            return batch

        return take

    plan.wrap(SampleStream, "take", decoded)


FAULTS = (
    Fault("labels-shuffled--sorted-as-text", ("labels-shuffled",), labels_sorted_as_text),
    Fault("labels-leaked--record-number", ("labels-leaked",), record_number),
    Fault("expansion-price--file-units", ("expansion-price",), prices_in_other_units),
    Fault("buffer-min-size--max-age", ("buffer-min-size",), too_old_to_count),
    Fault("target-frozen--wrong-head", ("target-frozen",), wrong_head),
    Fault("replay-stale--one-region", ("replay-stale",), one_region),
    Fault("dead-layer--value-net", ("dead-layer",), value_net_detached),
    Fault("loader-starvation--some-batches", ("loader-starvation",), some_batches_slow),
    Fault("nan--unreadable-children", ("nan",), unreadable_children),
)
