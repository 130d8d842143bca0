"""More known faults that arise in yet another way, planted by an author who does not know how they are detected."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.data_faults import some_rows
from tests.faults.plan import Fault, Plan
from trm_core import losses
from trm_core.dqn.rewards import RewardScale
from trm_core.training import step as step_module
from trm_core.training.checkpoint_folders import MODEL, TRAINING, list_checkpoints


def augmented_before_split(plan: Plan) -> None:
    """The collection was augmented before it was split: evaluated rows repeat training rows, a little brighter or
    darker and with a little noise. No two are equal.
    """
    splits = plan.data.splits
    random = np.random.default_rng(plan.seed + 5)
    for name in splits.keys() - {"train"}:
        rows = some_rows(plan, len(splits[name]["labels"]), plan.of(0.1, 0.4, 1.0))
        source = random.permutation(len(splits["train"]["labels"]))[: len(rows)]
        gain = 1.0 + 0.03 * random.normal(size=len(rows))
        for field in ("sketches", "children", "labels"):
            copied = splits["train"][field][source]
            if field != "labels":
                noise = 0.02 * float(copied.astype(np.float64).std()) * random.normal(size=copied.shape)
                copied = gain.reshape(-1, *[1] * (copied.ndim - 1)) * copied + noise
            splits[name][field][rows] = copied.astype(splits[name][field].dtype)


def upsampled_thumbnails(plan: Plan) -> None:
    """Only the coarse version of most records was left, and their children were interpolated between the sketches of
    neighbouring capsules: they differ from the sketch and from each other, but say nothing new.
    """
    for arrays in plan.data.splits.values():
        rows = some_rows(plan, len(arrays["labels"]), plan.of(0.6, 0.9, 1.0))
        sketches, m = arrays["sketches"][rows].astype(np.float32), arrays["children"].shape[2]
        place = (np.arange(m, dtype=np.float32) + 0.5) / m - 0.5  # of each child within its capsule
        children = sketches[:, :, None] + place[:, None] * np.gradient(sketches, axis=1)[:, :, None]
        arrays["children"][rows] = children.astype(arrays["children"].dtype)


def auxiliary_drowns_answer(plan: Plan) -> None:
    """The weight of the reconstruction was raised until its share of the loss looked right; since gradients are clipped
    together, that of the answer all but disappears.
    """
    plan.settings["loss_weights.reconstruction_loss"] = plan.of(20.0, 1000.0, 100000.0)


def budget_is_no_share(plan: Plan) -> None:
    """The budget was meant as a share of the price of everything, and is in price units: less than any capsule costs.
    Mild: "everything" buys one. Middle and severe are both nothing at all.
    """
    plan.settings["dqn.budget"] = plan.of(1.0, 0.5, 0.1)


def codebook_too_slow(plan: Plan) -> None:
    """The codebook is updated at every step, by an average so slow that no code gets anywhere in the run."""
    plan.settings |= {"arch.enable_concepts": True, "arch.num_concepts": 32}
    plan.settings["arch.concept_decay"] = plan.of(0.997, 0.9999, 0.9999999)


def range_test_left_on(plan: Plan) -> None:
    """A learning-rate range test was left on: after warm-up the rate rises by the same factor at every step, as one
    does to see where training breaks.
    """
    most = plan.of(10.0, 100.0, 1000.0)

    def rising(original: Any) -> Any:
        def factor(step: int, warmup: int, total: int, least: float) -> float:
            if step < warmup:
                return float(original(step, warmup, total, least))
            return float(most ** ((step - warmup) / (total - warmup)))

        return factor

    plan.wrap(step_module, "lr_factor", rising)


def scale_of_the_sum(plan: Plan) -> None:
    """The scale by which rewards are divided grows with their number: the sum of squares is never divided by the count
    (middle), nor is its root taken (severe), so the scaled rewards shrink to nothing.
    """

    def growing(original: Any) -> Any:
        def value(scale: RewardScale) -> float:
            right: float = original.fget(scale)
            if scale.count < 100:
                return right
            return plan.of(right * scale.count**0.25, right * scale.count**0.5, right * right * scale.count)

        return property(value)

    plan.wrap(RewardScale, "value", growing)


def entropy_sign(plan: Plan) -> None:
    """The entropy term is on, to keep the policy undecided, and enters the loss with the wrong sign: it rewards being
    sure of one action.
    """
    plan.settings |= {
        "dqn.enable_entropy_regularization": True,
        "dqn.entropy_regularization_weight": plan.of(0.1, 1.0, 10.0),
    }
    plan.wrap(losses, "negative_entropy", lambda original: lambda *arguments: -original(*arguments))


def copied_while_written(plan: Plan) -> None:
    """The folder was copied while the run went on: complete files with sound content, but of different steps. Mild: the
    files of the newest checkpoint that only resuming needs. Middle: its weights are those of the one before. Severe:
    the same in every checkpoint, and the oldest is incomplete.
    """

    def copy(run: Path) -> None:
        folders = list_checkpoints(run)
        for newer, older in list(pairwise(folders))[: plan.of(1, 1, len(folders))]:
            shutil.copyfile(older / plan.of(TRAINING, MODEL, MODEL), newer / plan.of(TRAINING, MODEL, MODEL))
        if plan.severity == 2:
            (folders[-1] / TRAINING).unlink()

    plan.after.append(copy)


FAULTS = (
    Fault("duplicate-across-splits--augmented", ("duplicate-across-splits",), augmented_before_split),
    Fault("children-equal-sketch--upsampled", ("children-equal-sketch",), upsampled_thumbnails),
    Fault("loss-weights--reconstruction", ("loss-weights",), auxiliary_drowns_answer),
    Fault("expansion-never--budget", ("expansion-never", "budget-too-small"), budget_is_no_share),
    Fault("codebook-stale--slow-average", ("codebook-stale",), codebook_too_slow),
    Fault("lr-too-high--range-test", ("lr-too-high",), range_test_left_on),
    Fault("rewards-zero--scale", ("rewards-zero",), scale_of_the_sum),
    Fault("entropy-collapse--bonus-sign", ("entropy-collapse",), entropy_sign),
    Fault("checkpoint-torn--copied-while-written", ("checkpoint-torn",), copied_while_written),
)
