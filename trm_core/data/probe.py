"""What opening capsules can be worth: a linear probe on sketches, on sketches + checksums, on sketches + children.

Fed by the builder while it writes, and by the inspection of a finished file; both see the same bounded rows, drawn with
a fixed seed, so they give the same numbers. A probe is logistic regression on standardised features; its strength of
regularisation is chosen on a fifth of its training rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from trm_core.data.fields import IGNORE_LABEL

MAX_TRAIN_ROWS = 5000
MAX_EVAL_ROWS = 2000
_SEED = 20_251
_MAX_COLLECTED = 2048
_MAX_FEATURES = 256
_MAX_CAPSULES = (5000, 2000)
_STRENGTHS = (0.001, 0.01, 0.1, 1.0)
_FITS = {"sketches": ("sketches",), "checksums": ("sketches", "checksums"), "children": ("sketches", "children")}


class ProbeSample:
    """Collects a bounded sample of a file while its rows pass by in order.

    `counts`: rows per split; `per_capsule`: targets are [N, k] labels, so that every capsule is a case of its own.
    The held-out split is validation, or test where there is none.
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
    class), sketches, checksums (sketches + checksums, None without), children (sketches + children, None without).
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
    for name, fields in _FITS.items():
        if all(field in train for field in fields):
            features = [np.concatenate([cases[field] for field in fields], axis=1) for cases in (train, held_out)]
            result[name] = _accuracy(features[0], train["labels"], features[1], held_out["labels"])
        else:
            result[name] = None
    return result


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
    """One row per case: samples as [n, k * w], or real capsules as [n, w]; cases without a label are left out."""
    if not arrays:
        return None
    labels = arrays["labels"]
    keep = labels != IGNORE_LABEL
    cases: dict[str, np.ndarray] = {"labels": labels[keep]}
    limit = MAX_TRAIN_ROWS
    for name in ("sketches", "checksums", "children"):
        if name in arrays:
            kept = arrays[name][keep]
            cases[name] = kept if per_capsule else kept.reshape(len(kept), -1)
    if not len(cases["labels"]):
        return None
    return {name: values[:limit] for name, values in cases.items()}


def _accuracy(train: np.ndarray, labels: np.ndarray, held_out: np.ndarray, truth: np.ndarray) -> float:
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, spread = train.mean(axis=0), train.std(axis=0)
    # Features that never vary carry nothing, and half-precision noise on them must not be blown up.
    useful = spread > 1e-4 * max(1e-12, float(spread.max(initial=0.0)))
    if not useful.any():
        return float(np.mean(truth == np.bincount(labels).argmax()))
    train, held_out = (((part - mean) / np.where(useful, spread, 1.0))[:, useful] for part in (train, held_out))
    if train.shape[1] > _MAX_FEATURES:
        reducer = PCA(_MAX_FEATURES if len(train) > _MAX_FEATURES else None, svd_solver="auto", random_state=_SEED)
        train = reducer.fit_transform(train)
        held_out = reducer.transform(held_out)
    order = np.random.default_rng([_SEED, len(train)]).permutation(len(train))
    check, fit = order[: len(train) // 5], order[len(train) // 5 :]

    def fitted(rows: np.ndarray, strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=100).fit(train[rows], labels[rows])

    with warnings.catch_warnings():
        # A probe that has not fully converged is as good a measure.
        warnings.simplefilter("ignore", ConvergenceWarning)
        best = _STRENGTHS[-1]
        if len(np.unique(labels[fit])) > 1 and len(check) >= 10:
            scores = [fitted(fit, strength).score(train[check], labels[check]) for strength in _STRENGTHS]
            best = _STRENGTHS[int(np.argmax(scores))]
        return float(fitted(order, best).score(held_out, truth))
