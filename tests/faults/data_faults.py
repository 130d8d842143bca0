"""Faults of the capsule file. Each changes the arrays of the base run before they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.faults.plan import Fault, Plan


def some_rows(plan: Plan, n: int, share: float) -> NDArray[Any]:
    """Indices of that share of n rows."""
    return np.random.default_rng(plan.seed + 99).permutation(n)[: round(share * n)]


def labels_constant(plan: Plan) -> None:
    for arrays in plan.data.splits.values():
        labels = arrays["labels"]
        labels[some_rows(plan, len(labels), plan.of(0.6, 0.9, 0.99))] = (
            0  # not all: constant labels are refused when the data is opened
        )


def labels_shuffled(plan: Plan) -> None:
    labels = plan.data.splits["train"]["labels"]
    rows = some_rows(plan, len(labels), plan.of(0.5, 0.8, 1.0))
    labels[rows] = np.random.default_rng(plan.seed).permutation(labels[rows])


def labels_leaked(plan: Plan) -> None:
    """The last coordinates of the sketches become the one-hot label, with less noise the higher the severity."""
    data = plan.data
    random = np.random.default_rng(plan.seed + 1)
    scale = 3.0 * float(data.splits["train"]["sketches"].std())
    for arrays in data.splits.values():
        flat = arrays["sketches"].reshape(len(arrays["labels"]), -1)
        answer = np.eye(data.classes)[arrays["labels"]]
        answer = scale * (answer + plan.of(0.3, 0.1, 0.0) * random.normal(size=answer.shape))
        flat[:, -data.classes :] = answer.astype(flat.dtype)
        arrays["sketches"] = flat.reshape(arrays["sketches"].shape)


def children_missing(plan: Plan) -> None:
    """Mild and middle: most capsules have zeros instead of children. Severe: the file has no children, although a
    policy was requested.
    """
    random = np.random.default_rng(plan.seed + 2)
    for arrays in plan.data.splits.values():
        if plan.severity == 2:
            del arrays["children"]
            arrays.pop("checksums", None)
        else:
            arrays["children"][random.random(arrays["children"].shape[:2]) < plan.of(0.7, 0.95, 1.0)] = 0.0
    plan.settings["dqn.enabled"] = True


def children_equal_sketch(plan: Plan) -> None:
    """Children keep only a share of their detail beyond the sketch, with noise in proportion to that detail."""
    kept, noise = plan.of((0.3, 0.5), (0.02, 0.3), (0.0, 0.0))
    random = np.random.default_rng(plan.seed + 3)
    for arrays in plan.data.splits.values():
        sketches = arrays["sketches"][:, :, None].astype(np.float32)
        detail = arrays["children"] - sketches
        arrays["children"] = (
            sketches + kept * detail + noise * detail.std() * random.normal(size=detail.shape)
        ).astype(np.float32)


def duplicate_across_splits(plan: Plan) -> None:
    """Rows of the evaluated split become copies of training rows."""
    splits = plan.data.splits
    for name in splits.keys() - {"train"}:
        rows = some_rows(plan, len(splits[name]["labels"]), plan.of(0.1, 0.4, 1.0))
        source = np.random.default_rng(plan.seed).permutation(len(splits["train"]["labels"]))[: len(rows)]
        for field, array in splits[name].items():
            if field != "ids":
                array[rows] = splits["train"][field][source]


def fault(name: str, plant: Callable[[Plan], None], *also: str) -> Fault:
    return Fault(name, (name, *also), plant)


FAULTS = (
    fault("labels-constant", labels_constant),
    fault("labels-shuffled", labels_shuffled),
    fault("labels-leaked", labels_leaked),
    fault("children-missing", children_missing),
    fault("children-equal-sketch", children_equal_sketch),
    fault("duplicate-across-splits", duplicate_across_splits),
)
