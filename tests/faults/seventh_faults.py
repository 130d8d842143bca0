"""Faults that cost practitioners the most time, each in the words of the one who made it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.faults.plan import Fault, Plan
from trm_core.data.order import RowOrder
from trm_core.model.heads import AnswerHead
from trm_core.optim.ema import WeightAverage
from trm_core.training import step as one_step
from trm_core.training.checkpoint import Checkpoint
from trm_core.training.state import TrainingState
from trm_core.training.step import StepTaker

Inner = Callable[..., Any]


def scaler_for_training_only(plan: Plan) -> None:
    """ "I standardise in the training script. The held-out file is read by another one, which does not: it is still in
    the units of the instrument."
    """
    factor, offset = plan.of((1.05, 0.05), (3.0, 1.5), (25.0, 10.0))
    train = plan.data.splits["train"]
    means = train["sketches"].mean((0, 1)), train["sketches"].std((0, 1)) + 1e-6
    for split, arrays in plan.data.splits.items():
        for name in ("sketches", "children"):
            standard = (arrays[name] - means[0]) / means[1]
            raw = factor * standard + offset
            arrays[name] = (standard if split == "train" else raw).astype(np.float32)


def label_encoder_fitted_twice(plan: Plan) -> None:
    """ "LabelEncoder().fit_transform for each export. In one of those that I hold out the first class does not occur,
    and all numbers are one lower."
    """
    share = plan.of(0.05, 0.5, 1.0)
    for split, arrays in plan.data.splits.items():
        if split != "train":
            labels = arrays["labels"].copy()
            rows = np.arange(len(labels)) < share * len(labels)
            labels[rows] = (labels[rows] - 1) % plan.data.classes
            arrays["labels"] = labels


def debug_subset_left_in(plan: Plan) -> None:
    """ "`rows = rows[:N]  # TODO remove`: from the day when I debugged the loop." """
    train = plan.data.splits["train"]
    rows = round(plan.of(0.6, 0.05, 0.02) * len(train["labels"]))
    plan.data.splits["train"] = {name: array[:rows] for name, array in train.items()}


def small_shuffle_buffer(plan: Plan) -> None:
    """ "The file is sorted by class, and the loader shuffles in a buffer: of how many rows I never asked." """
    train = plan.data.splits["train"]
    order = np.argsort(train["labels"], kind="stable")
    plan.data.splits["train"] = {name: array[order] for name, array in train.items()}
    share = plan.of(0.7, 0.08, 0.0)

    def around(inner: Inner) -> Inner:
        def window_rows(self: RowOrder, epoch: int, window: int) -> tuple[NDArray[Any], NDArray[Any]]:
            rows, _ = inner(self, epoch, window)
            random = np.random.default_rng([plan.seed, epoch, window])
            room = max(1, round(share * len(rows)))
            buffer, visit = list(range(room)), []
            for coming in range(room, len(rows)):
                place = int(random.integers(room))
                visit.append(buffer[place])
                buffer[place] = coming
            random.shuffle(buffer)
            return rows, np.array(visit + buffer, np.int64)

        return window_rows

    plan.wrap(RowOrder, "window_rows", around)


def softmax_before_the_loss(plan: Plan) -> None:
    """ "The head ends in a softmax, so that it gives probabilities. cross_entropy takes them, does it not?"

    Mild: times a temperature that makes up for most of it. Severe: the exported model had a softmax of its own.
    """
    scale, again = plan.of((16.0, False), (1.0, False), (1.0, True))

    def around(inner: Inner) -> Inner:
        def forward(self: AnswerHead, z_H: Tensor, mask: Tensor | None) -> Tensor:
            probabilities: Tensor = inner(self, z_H, mask).softmax(-1)
            return scale * (probabilities.softmax(-1) if again else probabilities)

        return forward

    plan.wrap(AnswerHead, "forward", around)


def schedule_of_the_trial_run(plan: Plan) -> None:
    """ "CosineAnnealingLR(T_max=...), eta_min=0. T_max is that of the trial run; I made the run longer, not it." """
    planned = round(plan.of(0.95, 0.17, 0.11) * plan.steps)

    def around(inner: Inner) -> Inner:
        def lr_factor(step: int, warmup_steps: int, total_steps: int, min_ratio: float) -> float:
            return float(inner(step, warmup_steps, planned, 0.0))

        return lr_factor

    plan.wrap(one_step, "lr_factor", around)


def average_of_the_beginning(plan: Plan) -> None:
    """ "ema.update(): decay 0.999, as in the paper. Theirs ran for a million steps, and the warm-up of the decay looked
    like clutter."
    """
    plan.settings["training.ema_decay"] = plan.of(0.97, 0.997, 0.9995)

    def around(inner: Inner) -> Inner:
        @torch.no_grad()
        def update(self: WeightAverage) -> None:
            self.updates += 1
            torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), 1 - self.decay)

        return update

    plan.wrap(WeightAverage, "update", around)


def paid_for_opening(plan: Plan) -> None:
    """ "It opened too little, so I pay for opening. By now it opens as long as it may, at any price." """
    plan.settings["dqn.reward_expansion_bonus"] = plan.of(0.12, 1.0, 5.0)
    plan.settings["dqn.reward_min_rise"] = 0.0


def resumed_with_nothing(plan: Plan) -> None:
    """ "model.load_state_dict(weights, strict=False). The names began with `_orig_mod.`, so none of them fitted, and
    nobody said so: it went on from the step where it was, with fresh weights."
    """
    at = round(plan.of(0.1, 0.7, 0.9) * plan.steps)
    plan.settings["training.stop_at_step"] = at
    plan.settings["training.eval_interval"] = max(1, plan.steps // 10)

    def around(inner: Inner) -> Inner:
        def restore(self: TrainingState, saved: Checkpoint) -> None:
            fresh = {name: p.detach().clone() for name, p in self.model.named_parameters()}
            inner(self, saved)
            with torch.no_grad():
                for name, p in self.model.named_parameters():
                    p.copy_(fresh[name])
                    if self.average is not None:
                        self.average.average[name].copy_(fresh[name])
                if self.target is not None:
                    self.target.head.load_state_dict(self.model.q_head.state_dict())

        return restore

    def go_on(run: Path) -> None:
        from trm_cli.main import main

        sys.argv = ["trm", "train", "--resume", str(run)]
        with patch.object(TrainingState, "restore", around(TrainingState.restore)):
            main()
        sys.exit(0)  # the run's last process counts

    plan.after.append(go_on)


def missing_is_minus_999(plan: Plan) -> None:
    """ "What was not measured is -999 in the export. There were few of them, I thought."

    Mild: -9, and rarer still.
    """
    value, share = plan.of((-9.0, 0.001), (-999.0, 0.02), (-999.0, 0.1))
    random = np.random.default_rng(plan.seed)
    for arrays in plan.data.splits.values():
        missing = random.random(arrays["sketches"].shape[:2]) < share
        for name in ("sketches", "children"):
            arrays[name] = arrays[name].copy()
            arrays[name][missing] = value


def history_written_anew(plan: Plan) -> None:
    """ "After each step I append to my history and write the whole of it to the group's share, for the plot." """
    last = plan.of(0.04, 2.0, 4.0)  # what the last step's writing takes, over what a step takes
    history: list[dict[str, float]] = []
    spent = 0.0

    def around(inner: Inner) -> Inner:
        def take(self: StepTaker, standing: Any) -> Any:
            nonlocal spent
            began = time.perf_counter()
            taken = inner(self, standing)
            spent += time.perf_counter() - began
            history.append({"step": len(history), "loss": float(taken[0].loss.detach())})
            (Path(plan.settings["training.run_dir"]) / "history.json").write_text(json.dumps(history))
            time.sleep(last * len(history) / plan.steps * spent / len(history))
            return taken

        return take

    plan.wrap(StepTaker, "take", around)


def evaluated_on_training_rows(plan: Plan) -> None:
    """ "eval_split=train was quicker to have, and the numbers were good." """
    train = plan.data.splits["train"]
    rows = round(plan.of(1.0, 0.2, 0.1) * len(train["labels"]))
    plan.data.splits["train"] = {name: array[:rows] for name, array in train.items()}
    plan.settings["data.eval_split"] = "train"


FAULTS = (
    Fault("seventh-scaler-for-training-only", ("splits-differ",), scaler_for_training_only),
    Fault("seventh-label-encoder-fitted-twice", ("splits-differ", "labels-shuffled"), label_encoder_fitted_twice),
    Fault("seventh-debug-subset", ("overfitting",), debug_subset_left_in),
    Fault(
        "seventh-small-shuffle-buffer",
        ("batches-unmixed", "predictions-collapse", "accuracy-falls"),
        small_shuffle_buffer,
    ),
    Fault("seventh-softmax-before-the-loss", ("underconfident", "loss-not-falling"), softmax_before_the_loss),
    Fault("seventh-schedule-of-the-trial-run", ("lr-too-low",), schedule_of_the_trial_run),
    Fault("seventh-average-of-the-beginning", ("average-behind", "accuracy-at-chance"), average_of_the_beginning),
    # The bonus is the cause; that rows never halt, and that all of them open, are its effects.
    Fault("seventh-paid-for-opening", ("bonus-pays", "halting-wrong", "entropy-collapse"), paid_for_opening),
    Fault("seventh-resumed-with-nothing", ("resume-lost", "accuracy-falls"), resumed_with_nothing),
    Fault("seventh-missing-is-minus-999", ("placeholder-values",), missing_is_minus_999),
    Fault("seventh-history-written-anew", ("slows-down",), history_written_anew),
    Fault("seventh-evaluated-on-training-rows", ("duplicate-across-splits",), evaluated_on_training_rows),
)
