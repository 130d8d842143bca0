"""The puzzle run in which faults are planted, and its faults: a small separate zoo, because puzzles have neither
capsules nor prices.
"""

from __future__ import annotations

import numpy as np

from tests.faults.bases import COMMON
from tests.faults.plan import Base, Fault, Plan
from tests.faults.puzzles import Puzzles, repeating

BASE = Base(
    "puzzles",
    {
        **{key: value for key, value in COMMON.items() if not key.startswith("dqn.")},
        "arch.pos_encodings": "rope",
        "arch.q_head_type": "linear",
        "arch.probabilities": "stablemax",
        "arch.puzzle_emb_ndim": 32,
        "arch.puzzle_emb_len": 1,
        "arch.H_cycles": 2,
        "training.global_batch_size": 64,
        "training.total_steps": 220,
    },
    repeating,
)


def puzzles_of(plan: Plan) -> Puzzles:
    """The puzzles of a plan, to be changed in place."""
    assert isinstance(plan.data, Puzzles)
    return plan.data


def lr_too_high(plan: Plan) -> None:
    plan.settings["training.base_lr"] *= plan.of(10.0, 100.0, 1000.0)


def labels_shuffled(plan: Plan) -> None:
    labels = puzzles_of(plan).splits["train"]["labels"]
    moved = np.random.default_rng(plan.seed).permutation(len(labels))[: round(plan.of(0.3, 0.6, 1.0) * len(labels))]
    labels[moved] = labels[np.roll(moved, 1)]


def tested_in_training(plan: Plan) -> None:
    """Test puzzles are also in the training split, with their answers."""
    splits = puzzles_of(plan).splits
    count = round(plan.of(0.1, 0.5, 1.0) * len(splits["test"]["labels"]))
    for field in ("inputs", "labels"):
        splits["train"][field][:count] = splits["test"][field][:count]


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("puzzles-lr-too-high", ("lr-too-high",), lr_too_high),
        Fault("puzzles-labels-shuffled", ("labels-shuffled",), labels_shuffled),
        Fault("puzzles-tested-in-training", ("duplicate-across-splits",), tested_in_training),
    )
}
