"""What opening capsules can be worth: a linear probe on sketches, on sketches + checksums, on sketches + children.

Fed by the builder while it writes, and by the inspection of a finished file; both see the same bounded sample of rows,
drawn with a fixed seed, so they give the same numbers. A probe is logistic regression on standardised features, its
regularisation chosen on a quarter of a sample of the training rows; linear discriminant analysis where there are many
classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from trm_core.data.fields import IGNORE_LABEL
from trm_core.data.threads import one_thread

MAX_TRAIN_ROWS = 5000
MAX_EVAL_ROWS = 2000
_SEED = 20_251
_MAX_COLLECTED = 2048
_MAX_FEATURES = 256
_MAX_CAPSULES = (5000, 2000)
_MAX_LOGISTIC_CLASSES = 32
_SHRINKAGE = 0.5
_MAX_VALUE = 1e18  # its square still fits into float32
_MAX_CHOICE_ROWS = 2000
_MAX_DIRECTION_ROWS = 2000
_STRENGTHS = (0.001, 0.01, 0.1, 1.0)
_FITS = {"sketches": ("sketches",), "checksums": ("sketches", "checksums"), "children": ("sketches", "children")}


class ProbeSample:
    """Collects a bounded sample of a file while its rows pass by in order.

    `counts`: rows per split; `per_capsule`: labels are [N, k], so every capsule is a case of its own. The held-out
    split is validation, or test where there is none.
    """

    def __init__(self, counts: Mapping[str, int], num_capsules: int, per_capsule: bool) -> None:
        self.per_capsule = per_capsule
        self.held_out = next((name for name in ("validation", "test") if counts.get(name)), None)
        self._wanted: dict[str, np.ndarray] = {}
        self._parts: dict[str, dict[str, list[np.ndarray]]] = {}
        limits = (MAX_TRAIN_ROWS, MAX_EVAL_ROWS)
        if per_capsule:
            limits = (-(-_MAX_CAPSULES[0] // num_capsules), -(-_MAX_CAPSULES[1] // num_capsules))
        for number, (split, limit) in enumerate(zip(("train", self.held_out), limits, strict=True)):
            if split is None or not counts.get(split):
                continue
            rows = np.arange(counts[split])
            if len(rows) > limit:
                rows = np.sort(np.random.default_rng([_SEED, number]).choice(len(rows), limit, replace=False))
            self._wanted[split] = rows
            self._parts[split] = {}

    def offer(self, split: str, start: int, fields: Mapping[str, np.ndarray]) -> None:
        """Rows [start, start + n) of a split; those that are wanted are kept."""
        if split not in self._wanted or "labels" not in fields:
            return
        wanted = self._wanted[split]
        count = len(fields["labels"])
        own = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + count)] - start
        if not len(own):
            return
        parts = self._parts[split]
        for name in ("sketches", "checksums", "children", "labels", "mask"):
            if name in fields:
                values = fields[name][own]
                if name not in ("labels", "mask"):
                    values = _shrink(values, self.per_capsule)
                parts.setdefault(name, []).append(values)

    def wanted(self, split: str) -> np.ndarray:
        """Row numbers of a split that `offer` would keep, ascending."""
        return self._wanted.get(split, np.zeros(0, dtype=np.int64))

    def arrays(self, split: str) -> dict[str, np.ndarray]:
        return {name: np.concatenate(parts) for name, parts in self._parts.get(split, {}).items()}


def measure(sample: ProbeSample) -> dict[str, Any] | None:
    """Accuracies between 0 and 1 on the held-out split, or None where there is nothing to measure on.

    Keys: split, per ("sample" or "capsule"), train_rows, eval_rows, classes, chance (always the most frequent training
    class), sketches, checksums (sketches + checksums, None without), children (sketches + children, None without). With
    children also gained and lost: held-out cases that only the probe with children answers correctly, and that only the
    one without does.
    """
    if sample.held_out is None:
        return None
    train = _cases(sample.arrays("train"), sample.per_capsule)
    held_out = _cases(sample.arrays(sample.held_out), sample.per_capsule)
    if train is None or held_out is None or len(np.unique(train["labels"])) < 2:
        return None
    names, counts = np.unique(train["labels"], return_counts=True)
    result: dict[str, Any] = {
        "split": sample.held_out,
        "per": "capsule" if sample.per_capsule else "sample",
        "train_rows": len(train["labels"]),
        "eval_rows": len(held_out["labels"]),
        "classes": len(names),
        "chance": float(np.mean(held_out["labels"] == names[counts.argmax()])),
    }
    right: dict[str, np.ndarray] = {}
    with one_thread():
        for name, fields in _FITS.items():
            result[name] = None
            if all(field in train for field in fields):
                own = [[cases[field] for field in fields] for cases in (train, held_out)]
                features = _features(own, sample.per_capsule)
                right[name] = _answers(features[0], train["labels"], features[1]) == held_out["labels"]
                result[name] = float(right[name].mean())
    if "children" in right:
        result["gained"] = int((right["children"] & ~right["sketches"]).sum())
        result["lost"] = int((right["sketches"] & ~right["children"]).sum())
    return result


def in_words(value: Mapping[str, Any] | None) -> list[str]:
    """The measurement in sentences for a newcomer, the answer first."""
    if value is None:
        return ["what EXPAND can be worth here: not measured (it needs labels in train and in validation or test)"]
    percent = {name: f"{100 * value[name]:.1f} %" for name in ("chance", *_FITS) if value.get(name) is not None}
    what = "samples" if value["per"] == "sample" else "capsules"
    measured = (
        f"(a linear probe of {value['train_rows']} {what}, measured on {value['eval_rows']} of {value['split']}; "
        f"always guessing the most frequent class: {percent['chance']})"
    )
    peeked = []
    if "checksums" in percent:
        peeked = [f"from sketches and checksums, which only the selector checksum peeks at: {percent['checksums']}"]
    if "children" not in percent:
        return [f"there is nothing to open; from the sketches alone: {percent['sketches']}", measured, *peeked]
    lines = [f"what EXPAND can be worth here: {percent['sketches']} -> {percent['children']}", measured, *peeked]
    return [*lines, _verdict(value, what)]


def _verdict(value: Mapping[str, Any], what: str) -> str:
    """What the accuracies with and without children mean."""
    sketches, children, chance = value["sketches"], value["children"], value["chance"]
    gained, lost = value["gained"], value["lost"]
    # McNemar's test at about 5 %: both probes answer the same cases, and those on which they agree tell nothing.
    if gained - lost > 2 * math.sqrt(gained + lost):
        return "sketches alone leave something out that the children hold: paying for detail can help"
    if max(sketches, children) <= chance:
        return (
            "neither is better than always guessing the most frequent class: "
            "a linear probe cannot tell what the children are worth"
        )
    if sketches > max(0.98, chance):
        return "sketches alone are nearly enough: a good policy opens little (a coarser --sketch would change that)"
    if gained > lost:
        more = f"{gained - lost} more of {value['eval_rows']} {what}"
        return f"with children {more} are answered rightly, which may be chance: too few to tell"
    return "a linear probe finds no clear use for the children; a model may still, or the sketch is too rich"


def _shrink(values: np.ndarray, per_capsule: bool) -> np.ndarray:
    """[n, k, ...] -> float32 [n, k, w]: flattened, and projected at random where that is too wide to keep."""
    n, k = values.shape[:2]
    flat = values.reshape(n, k, -1)
    width = flat.shape[2]
    room = _MAX_COLLECTED if per_capsule else max(1, _MAX_COLLECTED // k)
    if width <= room:
        return flat.astype(np.float32)
    matrix = np.random.default_rng([_SEED, width, room]).standard_normal((width, room)).astype(np.float32)
    shrunk: np.ndarray = flat.astype(np.float32) @ (matrix / np.float32(np.sqrt(width)))
    return shrunk


def _cases(arrays: dict[str, np.ndarray], per_capsule: bool) -> dict[str, np.ndarray] | None:
    """One row per case: samples as [n, k * w], or real capsules as [n, w]. Cases without a label are left out, and so
    are those with NaN, infinity or a value whose square would overflow, which are reported elsewhere.
    """
    if not arrays:
        return None
    labels = arrays["labels"]
    keep = labels != IGNORE_LABEL
    for name, values in arrays.items():
        if name not in ("labels", "mask"):
            sound = np.abs(values) < _MAX_VALUE  # false for NaN
            keep &= sound.all(axis=tuple(range(labels.ndim, values.ndim)))
    cases = {name: values[keep] for name, values in arrays.items() if name != "mask"}
    return cases if len(cases["labels"]) else None


def _features(fields: list[list[np.ndarray]], per_capsule: bool) -> list[np.ndarray]:
    """[cases, features] of the training and the held-out cases, from their fields [cases, (k,) w].

    For samples: the mean over capsules, for tasks where position does not matter, and all capsules side by side,
    reduced to their principal components where that is wide.
    """
    joined = [np.concatenate(own, axis=-1) for own in fields]
    in_place = _standardise(*(values.reshape(len(values), -1) for values in joined))
    if in_place[0].shape[1] > _MAX_FEATURES:
        from sklearn.decomposition import PCA

        # Approximate components of a sample of rows: the probe does as well on them, in a quarter of the time.
        rows = np.random.default_rng(_SEED).permutation(len(in_place[0]))[:_MAX_DIRECTION_ROWS]
        count = min(_MAX_FEATURES, len(rows))
        reducer = PCA(count, svd_solver="randomized", iterated_power=1, random_state=_SEED)
        reducer.fit(in_place[0][rows])
        in_place = [reducer.transform(values) for values in in_place]
    if per_capsule:
        return in_place
    pooled = _standardise(*(values.mean(axis=1) for values in joined))
    return [np.concatenate(parts, axis=1) for parts in zip(pooled, in_place, strict=True)]


def _standardise(train: np.ndarray, held_out: np.ndarray) -> list[np.ndarray]:
    """Both standardised by the training cases' mean and spread; features that do not vary there are left out."""
    mean, spread = train.mean(axis=0), train.std(axis=0)
    # Half-precision rounding must not be blown up into a feature.
    useful = spread > 1e-4 * float(spread.max(initial=0.0))
    return [((part - mean) / np.where(useful, spread, 1.0))[:, useful] for part in (train, held_out)]


def _answers(train: np.ndarray, labels: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """The answers to the held-out cases of a probe fitted on the training cases."""
    from sklearn.exceptions import ConvergenceWarning

    if not train.shape[1]:
        names, counts = np.unique(labels, return_counts=True)
        return np.full(len(held_out), names[counts.argmax()])
    with warnings.catch_warnings():
        # A probe that has not fully converged, or has seen a class only about once, measures just as well.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "Only one sample available", UserWarning)
        warnings.filterwarnings("ignore", "The number of unique classes is greater than", UserWarning)
        if _MAX_LOGISTIC_CLASSES < len(np.unique(labels)) < len(labels):
            probe = _discriminant()
        else:
            probe = _logistic(_strength(train, labels))
        answers: np.ndarray = probe.fit(train, labels).predict(held_out)
        return answers


def _strength(train: np.ndarray, labels: np.ndarray) -> float:
    """The regularisation (C, its inverse strength) that does best on a quarter of a sample of the training cases."""
    order = np.random.default_rng([_SEED, len(train)]).permutation(len(train))[:_MAX_CHOICE_ROWS]
    check, fit = order[: len(order) // 4], order[len(order) // 4 :]
    if len(check) < 10 or len(np.unique(labels[fit])) < 2:
        return _STRENGTHS[-1]
    scores = [
        _logistic(strength).fit(train[fit], labels[fit]).score(train[check], labels[check]) for strength in _STRENGTHS
    ]
    return _STRENGTHS[int(np.argmax(scores))]


def _logistic(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=100)


def _discriminant() -> Any:
    """The linear probe for many classes, where it does better than a logistic one in the same time."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage=_SHRINKAGE)
