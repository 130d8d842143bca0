"""Samples, detail and settings that are not where they belong; planted by the author of the checks."""

from __future__ import annotations

import numpy as np

from tests.faults.plan import Fault, Plan


def held_out_in_another_scale(plan: Plan) -> None:
    """The held-out split was divided by its own standard deviation, in another unit, and not centred."""
    for split, arrays in plan.data.splits.items():
        if split != "train":
            for name in ("sketches", "children"):
                spread = float(plan.data.splits["train"][name].std())
                scale, moved = plan.of((1.2, 0.1), (1.7, 0.3), (4.0, 1.0))
                arrays[name] = (arrays[name] * scale + moved * spread).astype(arrays[name].dtype)


def held_out_classes_of_their_own(plan: Plan) -> None:
    """The data were split by class, so training never sees some of the classes that are evaluated."""
    train = plan.data.splits["train"]
    gone = np.arange(plan.of(0.03, 0.3, 0.6) * plan.data.classes)
    kept = ~np.isin(train["labels"], gone)
    plan.data.splits["train"] = {name: values[kept] for name, values in train.items()}


def children_one_capsule_late(plan: Plan) -> None:
    """A loop joined children to sketches with an offset of one, in a part of the rows."""
    for arrays in plan.data.splits.values():
        rows = np.arange(len(arrays["labels"])) < plan.of(0.3, 0.8, 1.0) * len(arrays["labels"])
        arrays["children"] = np.where(
            rows[:, None, None, None], np.roll(arrays["children"], 1, axis=1), arrays["children"]
        )


def children_one_row_late(plan: Plan) -> None:
    """Children are one row late, as when the rows of the detail were sorted again or a header was read as a row."""
    for arrays in plan.data.splits.values():
        late = np.arange(len(arrays["labels"])) < plan.of(0.3, 0.8, 1.0) * len(arrays["labels"])
        arrays["children"] = np.where(
            late[:, None, None, None], np.roll(arrays["children"], 1, axis=0), arrays["children"]
        )


def no_step_to_come(plan: Plan) -> None:
    """There is only one reasoning step: severities do not differ."""
    plan.settings["arch.max_steps"] = 1


def no_future(plan: Plan) -> None:
    plan.settings["dqn.gamma"] = plan.of(0.7, 0.4, 0.0)


def dropped(plan: Plan) -> None:
    plan.settings["arch.dropout"] = plan.of(0.55, 0.75, 0.95)


def decayed(plan: Plan) -> None:
    """The weight decay comes from a setup whose learning rate was a hundred times smaller."""
    rate = max(float(plan.settings.get(key, 0.0)) for key in ("training.base_lr", "training.muon_lr"))
    plan.settings["training.weight_decay"] = plan.of(0.008, 0.04, 0.2) / rate


FAULTS = (
    Fault("splits-differ", ("splits-differ",), held_out_in_another_scale),
    Fault("splits-differ--classes", ("splits-differ",), held_out_classes_of_their_own),
    Fault("children-misplaced", ("children-misplaced",), children_one_capsule_late),
    Fault("children-misplaced--rows", ("children-misplaced",), children_one_row_late),
    Fault("one-step", ("one-step",), no_step_to_come),
    Fault("future-discounted", ("future-discounted",), no_future),
    Fault("regularisation--dropout", ("regularisation",), dropped),
    Fault("regularisation--decay", ("regularisation",), decayed),
)
