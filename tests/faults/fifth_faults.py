"""Known faults in the form in which they most often arise when such models are trained, planted by yet another author
who had not read how they are detected.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import torch

from tests.faults.code_faults import shorter
from tests.faults.data_faults import some_rows
from tests.faults.plan import Fault, Plan
from trm_core.data.batch import CapsuleBatch
from trm_core.model.carry import Carry
from trm_core.optim.build import Optimizers
from trm_core.training import setup
from trm_core.training.episodes import Episodes
from trm_core.training.step import StepTaker


def upside_down(plan: Plan) -> None:
    """The held-out pictures came from a phone, and I did not look at the flag that says which way up they are: all that
    a sample holds stands in the reverse order. Mild and middle: only some of them were taken that way.
    """
    for split in plan.data.splits.keys() - {"train"}:
        arrays = plan.data.splits[split]
        rows = some_rows(plan, len(arrays["labels"]), plan.of(0.15, 0.6, 1.0))
        for name in ("sketches", "children"):
            values = arrays[name][rows]
            arrays[name][rows] = values.reshape(len(rows), -1)[:, ::-1].reshape(values.shape)


def same_shard_again(plan: Plan) -> None:
    """The loop over the shards opened the first one each time (its path was formatted outside of the loop). The file
    has as many rows as it should have: of these a half, a twelfth or a fiftieth are different ones.
    """
    train = plan.data.splits["train"]
    n = len(train["labels"])
    rows = np.arange(n) % round(plan.of(0.5, 0.08, 0.02) * n)
    plan.data.splits["train"] = {name: values[rows] for name, values in train.items()}


def decay_in_epochs(plan: Plan) -> None:
    """Our old code counted epochs, so epsilon_decay was 1 or 2; here it is optimiser steps. Exploration is over before
    anything is learned, and the least epsilon was set to what an evaluation uses. Mild: over early, and not quite 0.
    """
    plan.settings |= {
        "dqn.epsilon_decay": plan.of(30, 3, 1),
        "dqn.epsilon_end": plan.of(0.03, 0.002, 0.0),
        "dqn.halt_exploration": plan.of(0.1, 0.0, 0.0),
    }


def fine_tuning_rate(plan: Plan) -> None:
    """The rate is the one I always use, from fine-tuning a pretrained language model. The model begins at random here,
    and there are some hundred steps. Mild: ten times that rate.
    """
    rate = plan.of(5e-4, 5e-5, 2e-6)
    for key in ("training.base_lr", "training.muon_lr"):
        if key in plan.settings:
            plan.settings[key] = rate


def first_stage_config(plan: Plan) -> None:
    """The config is a copy of the first stage's, in which the policy was not to learn yet: the weight of its loss is
    still 0 (mild: very small). Severe: that of the head which chooses capsules, too.
    """
    plan.settings["loss_weights.dqn_loss"] = plan.of(0.001, 0.0, 0.0)
    if plan.severity == 2:
        plan.settings["loss_weights.cmi_loss"] = 0.0


def not_in_the_optimiser(plan: Plan) -> None:
    """The optimiser was made from a list of modules, and not all of them are in it: they have gradients, and nobody
    moves them. Mild: one block. Middle: all blocks. Severe: the embedding too, since only the heads were listed.
    """
    left_out = plan.of(("blocks.0.",), ("blocks.",), ("recursion.", "embedding."))

    def listed(original: Any) -> Any:
        def build_optimizers(model: torch.nn.Module, *rest: Any, **named: Any) -> Optimizers:
            built: Optimizers = original(model, *rest, **named)
            missed = {id(p) for name, p in model.named_parameters() if any(part in name for part in left_out)}
            for optimizer in built.all:
                for group in optimizer.param_groups:
                    group["params"] = [p for p in group["params"] if id(p) not in missed]
            return built

        return build_optimizers

    plan.wrap(setup, "build_optimizers", listed)


def loss_scale_grows(plan: Plan) -> None:
    """Gradients are kept in half precision under a loss scale that doubles every so many steps, but update() is never
    told of an overflow: once there is one, there is one at every step, after half of the run, or early in it. Mild: it
    is told, and steps are lost now and then.
    """
    every = plan.of(20, 20, 8)
    scale, since = 2.0**10, 0

    def halved(original: Any) -> Any:
        def differentiate(taker: StepTaker, *arguments: Any) -> Any:
            nonlocal scale, since
            result = original(taker, *arguments)
            optimizers, since = taker.state.optimizers, since + 1
            grads = [p.grad for p in (*optimizers.model_params, *optimizers.policy_params) if p.grad is not None]
            for grad in grads:
                grad.copy_((grad * scale).half().float() / scale)
            if plan.severity == 0 and not all(bool(grad.isfinite().all()) for grad in grads):
                scale, since = scale / 2.0, 0
            elif since % every == 0:
                scale *= 2.0
            return result

        return differentiate

    plan.wrap(StepTaker, "differentiate", halved)


def forward_past_ddp(plan: Plan) -> None:
    """Two processes; the forward is called on `model.module` and not on what DDP made of it, so that gradients are not
    shared and each process trains a model of its own. Mild and middle: only from some step on, as with a second phase.
    """
    plan.processes = 2
    plan.settings["training.total_steps"] = 130
    begin = plan.of(97, 60, 0)

    def unwrapped(original: Any) -> Any:
        def learn(taker: StepTaker, policy_only: bool) -> Any:
            shared = original(taker, policy_only)
            return taker.loss if taker.state.step >= begin else shared

        return learn

    plan.wrap(StepTaker, "learn", unwrapped)


def chunk_for_every_row(plan: Plan) -> None:
    """The detail was written with gzip and one chunk for everything, and is read row by row: for each row all of the
    chunk is unpacked. The severities are how large the chunk is.
    """
    shorter(plan, plan.of(0.9, 0.6, 0.35))
    size = plan.of(1 << 16, 1 << 19, 3 << 20)  # bytes
    file = h5py.File("rows", "w", driver="core", backing_store=False, rdcc_nbytes=0)
    detail = np.random.default_rng(plan.seed).normal(size=(size // 256, 64)).astype(np.float32)
    rows = file.create_dataset("children", data=detail, chunks=detail.shape, compression="gzip")

    def slow(original: Any) -> Any:
        def draw(taker: StepTaker, *arguments: Any) -> Any:
            batch: CapsuleBatch = original(taker, *arguments)
            for row in batch.rows.tolist():
                _ = rows[row % len(rows)]
            return batch

        return draw

    plan.wrap(StepTaker, "draw", slow)


def erased(plan: Plan) -> None:
    """Random erasing, as an augmentation of the training rows: the probability is that of each capsule, and I took it
    for that of a row. What is erased is zero, in sketch and detail.
    """
    random = torch.Generator().manual_seed(plan.seed)
    share = plan.of(0.2, 0.75, 0.9)

    def erasing(original: Any) -> Any:
        def begin(episodes: Episodes, carry: Carry, batch: CapsuleBatch, step: int) -> Carry:
            kept = torch.rand(batch.sketches.shape[:2], generator=random) >= share
            children = None if batch.children is None else batch.children * kept[:, :, None, None]
            batch = replace(batch, sketches=batch.sketches * kept[:, :, None], children=children)
            begun: Carry = original(episodes, carry, batch, step)
            return begun

        return begin

    plan.wrap(Episodes, "begin", erasing)


def never_logged_in(plan: Plan) -> None:
    """I switched W&B on and looked at the project in the browser: no run. Mild: the job script of the cluster says
    WANDB_MODE=offline. Middle: nobody had logged in on that machine. Severe: a debugging shell had it disabled.
    """
    plan.settings["logging.wandb"] = True
    mode = plan.of({"WANDB_MODE": "offline"}, {}, {"WANDB_MODE": "disabled"})
    plan.patches.append(patch.dict(os.environ, {"WANDB_SILENT": "true", **mode}))


def killed_at_the_limit(plan: Plan) -> None:
    """The job had asked for too little time and was killed at its limit, with no signal before it: just before the end,
    half way, or after a few steps, before anything was saved.
    """
    last = round(plan.of(0.97, 0.55, 0.15) * plan.steps)

    def limited(original: Any) -> Any:
        def take(taker: StepTaker, *arguments: Any) -> Any:
            if taker.state.step >= last:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(taker, *arguments)

        return take

    plan.wrap(StepTaker, "take", limited)


FAULTS = (
    Fault("splits-differ--upside-down", ("splits-differ",), upside_down),
    Fault("overfitting--same-shard-again", ("overfitting",), same_shard_again),
    Fault("epsilon-zero--decay-in-epochs", ("epsilon-zero",), decay_in_epochs),
    Fault("lr-too-low--fine-tuning-rate", ("lr-too-low",), fine_tuning_rate),
    # The weight is the cause; that Q-learning does not learn is its effect.
    Fault("loss-weights--first-stage-config", ("loss-weights", "dqn-not-learning"), first_stage_config),
    Fault("dead-layer--not-in-the-optimiser", ("dead-layer",), not_in_the_optimiser),
    Fault("nan--loss-scale-grows", ("nan",), loss_scale_grows),
    Fault("ranks-diverged--forward-past-ddp", ("ranks-diverged",), forward_past_ddp),
    Fault("loader-starvation--chunk-for-every-row", ("loader-starvation",), chunk_for_every_row),
    Fault("regularisation--erased", ("regularisation",), erased),
    Fault("wandb-ready--never-logged-in", ("wandb-ready",), never_logged_in),
    Fault("run-ended--killed-at-the-limit", ("run-ended",), killed_at_the_limit),
)
