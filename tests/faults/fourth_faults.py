"""Known faults that arise in a fourth way, and faults not planted before, by another author who had not read how they
are detected.
"""

from __future__ import annotations

import errno
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tests.faults.code_faults import shorter
from tests.faults.data_faults import some_rows
from tests.faults.plan import Fault, Plan
from trm_core.data.batch import CapsuleBatch
from trm_core.dqn.replay import ReplayBuffer
from trm_core.model.carry import Carry
from trm_core.training import saving
from trm_core.training import step as step_module
from trm_core.training.checkpoint import Checkpoint
from trm_core.training.episodes import Episodes
from trm_core.training.step import StepTaker


def encoder_fitted_anew(plan: Plan) -> None:
    """The encoder was fitted anew for later records, which the held-out split is full of: of half of its components (at
    least one) the sign came out the other way round, as it may with a PCA. Means and deviations stay as they were.
    """
    train = plan.data.splits["train"]
    width = train["sketches"].shape[-1]
    turned = np.random.default_rng(plan.seed + 8).permutation(width)[: -(-width // 2)]
    for split in plan.data.splits.keys() - {"train"}:
        arrays = plan.data.splits[split]
        rows = some_rows(plan, len(arrays["labels"]), plan.of(0.15, 0.6, 1.0))
        for name in ("sketches", "children"):
            mean = train[name].astype(np.float32).mean(tuple(range(train[name].ndim - 1)))
            values = arrays[name][rows].astype(np.float32)
            values[..., turned] = 2.0 * mean[turned] - values[..., turned]
            arrays[name][rows] = values.astype(arrays[name].dtype)


def detail_in_another_order(plan: Plan) -> None:
    """The detail of the first rows (or all) was exported in the order of a column of its own, and put beside sketches
    that stand in the order of the records.
    """
    for arrays in plan.data.splits.values():
        children = arrays["children"]
        count = round(plan.of(0.25, 0.7, 1.0) * len(children))
        column = children[:count].astype(np.float32).reshape(count, -1).mean(1)
        children[:count] = children[:count][np.argsort(column, kind="stable")]


def steps_not_counted_anew(plan: Plan) -> None:
    """A row that takes a new sample goes on counting reasoning steps where the old sample ended, so that sooner or
    later every sample is at its last step when it comes in. Mild: the count goes back by two. Middle: it stays within
    the most steps. Severe: it has no end.
    """
    most = int(plan.settings["arch.max_steps"])

    def counting_on(original: Any) -> Any:
        def begin(episodes: Episodes, carry: Carry, batch: CapsuleBatch, step: int) -> Carry:
            begun: Carry = original(episodes, carry, batch, step)
            before = plan.of((carry.steps - 2).clamp(min=0), carry.steps.clamp(max=most - 1), carry.steps)
            return replace(begun, steps=torch.where(carry.halted, before + 1, begun.steps))

        return begin

    plan.wrap(Episodes, "begin", counting_on)


def every_step_an_end(plan: Plan) -> None:
    """Transitions are stored as ends of their episodes, because the flag of the reasoning step was taken for that of
    the sample: nothing of what comes after an action counts. Mild and middle: of a part of the rows.
    """
    random = torch.Generator().manual_seed(plan.seed)
    share = plan.of(0.3, 0.8, 1.0)

    def ending(original: Any) -> Any:
        def complete(
            buffer: ReplayBuffer,
            slots: torch.Tensor,
            which: torch.Tensor,
            actions: torch.Tensor,
            rewards: torch.Tensor,
            intrinsic: torch.Tensor,
            next_slots: torch.Tensor,
            done: torch.Tensor,
        ) -> None:
            done = done | (torch.rand(done.shape, generator=random) < share)
            original(buffer, slots, which, actions, rewards, intrinsic, next_slots, done)

        return complete

    plan.wrap(ReplayBuffer, "complete", ending)


def smoothing_is_what_is_kept(plan: Plan) -> None:
    """Where the config comes from, 0.9 was what the right answer keeps; here it is what is taken from it."""
    plan.settings["training.label_smoothing"] = plan.of(0.5, 0.9, 0.99)


def schedule_counts_rows(plan: Plan) -> None:
    """The schedule is told how many rows there were, not how many steps: its cosine is over after a few steps, and the
    rest of training happens at the least rate, which was meant for the very end. Mild: it counts three processes.
    """
    factor = plan.of(3, *[int(plan.settings["training.global_batch_size"])] * 2)
    plan.settings["training.lr_min_ratio"] = plan.of(0.1, 0.01, 0.0003)

    def in_rows(original: Any) -> Any:
        def lr_factor(step: int, warmup: int, total: int, least: float) -> float:
            return float(original(factor * step, warmup, total, least))

        return lr_factor

    plan.wrap(step_module, "lr_factor", in_rows)


def debugging_subset(plan: Plan) -> None:
    """Only the first rows of the training split were written, to try something out, and the file was left so."""
    train = plan.data.splits["train"]
    count = round(plan.of(0.3, 0.06, 0.02) * len(train["labels"]))
    plan.data.splits["train"] = {name: values[:count] for name, values in train.items()}


def classes_counted_from_one(plan: Plan) -> None:
    """Part of the training rows comes from an export that counts classes from one (its last is the other's first)."""
    labels = plan.data.splits["train"]["labels"]
    rows = some_rows(plan, len(labels), plan.of(0.2, 0.6, 1.0))
    labels[rows] = (labels[rows] + 1) % plan.data.classes


def sign_of_an_exponent(plan: Plan) -> None:
    """The norm was to be 1.0e+8, which is no clipping at all; it became 1.0e-8, so that a gradient is no more than what
    an optimiser adds to a denominator. Severe: far below that, and the policy's too. Mild is only a norm that is rather
    small.
    """
    plan.settings["training.grad_clip_norm"] = plan.of(0.02, 1e-8, 1e-12)
    if plan.severity == 2:
        plan.settings["dqn.grad_clip_norm"] = 1e-12


def distance_for_cosine(plan: Plan) -> None:
    """The threshold of near copies was given as a distance of 0.02, and is a cosine: nearly everything is a copy of
    what is there, and the bank never holds more than a few entries.
    """
    plan.settings |= {
        "memory.enabled": True,
        "memory.capacity": 256,
        "memory.num_heads": 4,
        "memory.dedup_threshold": plan.of(0.6, 0.02, 0.0),
    }


def quota_exceeded(plan: Plan) -> None:
    """There is no room for checkpoints: for a while in the middle of the run, from its middle on, or at all. When the
    last one cannot be saved the run ends.
    """
    plan.settings["training.checkpoint_interval"] = plan.steps // 8
    first, last = plan.of((0.4, 0.7), (0.5, 1.0), (0.0, 1.0))

    def full(original: Any) -> Any:
        def write_part(folder: Any, part: Checkpoint, rank: int) -> Any:
            if first <= part.step / plan.steps <= last:
                raise OSError(errno.EDQUOT, "Disk quota exceeded", str(folder))
            return original(folder, part, rank)

        return write_part

    plan.wrap(saving, "write_part", full)


def history_gone_through(plan: Plan) -> None:
    """Somebody's hook goes through all that it has kept of earlier steps, at every step: what a step takes grows with
    the number of those before it, up to so many times what it takes by itself.
    """
    longest = plan.of(0.4, 3.5, 8.0)
    shorter(plan, plan.of(1.0, 0.9, 0.6))
    total = plan.steps

    def growing(original: Any) -> Any:
        def differentiate(taker: StepTaker, *arguments: Any) -> Any:
            began = time.perf_counter()
            result = original(taker, *arguments)
            time.sleep(longest * taker.state.step / total * (time.perf_counter() - began))
            return result

        return differentiate

    plan.wrap(StepTaker, "differentiate", growing)


FAULTS = (
    Fault("splits-differ--encoder-fitted-anew", ("splits-differ",), encoder_fitted_anew),
    Fault("children-misplaced--exported-in-another-order", ("children-misplaced",), detail_in_another_order),
    Fault("one-step--count-goes-on", ("one-step",), steps_not_counted_anew),
    Fault("future-discounted--every-step-an-end", ("future-discounted",), every_step_an_end),
    Fault("regularisation--smoothing", ("regularisation",), smoothing_is_what_is_kept),
    Fault("lr-too-low--schedule-counts-rows", ("lr-too-low",), schedule_counts_rows),
    Fault("overfitting--debugging-subset", ("overfitting",), debugging_subset),
    # If all training labels are shifted, training goes well and no held-out answer is right, so the splits differ too.
    Fault("labels-shuffled--counted-from-one", ("labels-shuffled", "splits-differ"), classes_counted_from_one),
    Fault("clipping--sign-of-an-exponent", ("clipping",), sign_of_an_exponent),
    Fault("memory-bank-empty--distance-for-cosine", ("memory-bank-empty",), distance_for_cosine),
    Fault("disk-space--quota", ("disk-space",), quota_exceeded),
    Fault("slows-down--history", ("slows-down",), history_gone_through),
)
