"""Healthy runs that differ in data, size, settings and optimiser: no check may find a fault in them."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import datasets

from tests.faults.bases import BASES, COMMON
from tests.faults.capsules import Arrays, Capsules, about, generated, with_checksums
from tests.faults.plan import Base


def table(name: str, seed: int) -> Capsules:
    """Columns of a table that ships with scikit-learn: a capsule per group of columns, hidden until it is bought."""
    loaded: Any = datasets.load_wine() if name == "wine" else datasets.load_breast_cancer()
    values = (loaded.data - loaded.data.mean(0)) / loaded.data.std(0)
    m = 2
    k = values.shape[1] // m
    order = np.random.default_rng(seed).permutation(len(values))
    children = values[order, : k * m].reshape(len(values), k, m, 1)
    labels = loaded.target[order]
    cut = round(0.8 * len(values))
    # The sketch is a noisy glimpse of the children's mean, and has their width.
    blur = 0.7 * np.random.default_rng(seed + 1).normal(size=(len(values), k, 1))
    sketches = children.mean(2) + blur
    splits: dict[str, Arrays] = {}
    for split, rows in (("train", slice(cut)), ("validation", slice(cut, None))):
        splits[split] = {
            "sketches": sketches[rows].astype(np.float32),
            "children": children[rows].astype(np.float32),
            "labels": labels[rows],
        }
    return Capsules(with_checksums(splits, 2), about(len(loaded.target_names)))


def answer_per_capsule(seed: int) -> Capsules:
    """A label per capsule: its own code in sketch and detail, coupled with its left neighbour's."""
    random = np.random.default_rng(seed)
    codes = random.normal(size=(4, 6))
    splits: dict[str, Arrays] = {}
    for split, n in (("train", 1200), ("validation", 240)):
        steps = random.integers(0, 2, (n, 5))
        labels = (random.integers(0, 4, (n, 1)) + np.cumsum(steps, 1)) % 4
        sketches = codes[labels] + 1.2 * random.normal(size=(n, 5, 6))
        detail = 0.5 * codes[labels] + 0.4 * random.normal(size=(n, 5, 6))
        children = np.stack([sketches + detail, sketches - detail], 2)
        parents = np.tile(np.r_[-1, np.arange(4)], (n, 1))
        splits[split] = {
            "sketches": sketches.astype(np.float32),
            "children": children.astype(np.float32),
            "labels": labels,
            "parents": parents,
        }
    return Capsules(with_checksums(splits, 3), about(4))


def messages(seed: int, rows: int = 480, k: int = 8, m: int = 4, dim: int = 16) -> Capsules:
    """A few hundred short texts: a capsule per sentence, a child per word. Most texts have few sentences and most
    sentences few words, so late capsules and late children are zeros in nearly every row.
    """
    random = np.random.default_rng(seed)
    words = random.normal(size=(300, dim)) * (random.random((300, dim)) < 0.3)
    words[150:, :2] += 1.5
    splits: dict[str, Arrays] = {}
    for split, n in (("train", rows), ("validation", rows // 8)):
        labels = random.integers(0, 2, n)
        telling = random.random((n, k, m)) < np.where(labels, 0.9, 0.1)[:, None, None]
        spoken = random.integers(0, 150, (n, k, m)) + 150 * telling
        there = np.arange(k) < np.minimum(random.geometric(0.45, (n, 1)), k)
        uttered = there[:, :, None] & (np.arange(m) < np.minimum(1 + random.geometric(0.8, (n, k, 1)), m))
        children = words[spoken] * uttered[..., None]
        sketches = children.sum(2) + 2.0 * random.normal(size=(n, k, dim)) * there[:, :, None]
        splits[split] = {
            "sketches": sketches.astype(np.float32),
            "children": children.astype(np.float32),
            "labels": labels,
            "mask": there,
        }
    return Capsules(with_checksums(splits, 4), about(2))


def varied(name: str, base: str, settings: dict[str, Any]) -> Base:
    """A base run with other settings."""
    known = BASES[base]
    return Base(name, {**known.settings, **settings}, known.load, known.source)


HEALTHY = {
    base.name: base
    for base in (
        *BASES.values(),
        varied("digits-adamw", "digits", {"training.optimizer": "adamw", "training.global_batch_size": 64}),
        varied(
            "digits-wide", "digits", {"arch.hidden_size": 64, "arch.num_layers": 1, "arch.q_head_type": "attention"}
        ),
        varied(
            "digits-act",
            "digits",
            {"arch.enable_capsule_expansion": False, "dqn.enabled": False, "arch.enable_q_continue": True},
        ),
        varied("digits-hierarchy", "digits", {"arch.enable_hierarchical_attention": True, "arch.num_layers": 1}),
        varied("digits-phases", "digits", {"training.predictor_steps": 140, "training.halt_gradient": "head"}),
        varied("generated-uniform", "generated", {"dqn.replay": "uniform", "arch.enable_concepts": False}),
        varied("generated-parts", "generated", {"training.accumulation_steps": 2, "memory.enabled": False}),
        varied("generated-recurrent", "generated", {"arch.q_head_type": "rnn", "dqn.sequence_length": 2}),
        varied("generated-atan2", "generated", {"training.optimizer": "adamatan2", "dqn.enable_curiosity": True}),
        Base(
            "generated-large",
            {**COMMON, "training.ema_decay": None, "arch.H_cycles": 2, "training.log_interval": 10},
            lambda seed: generated(seed + 50, rows=3000, k=4, dim=8, classes=6, noise=0.6),
        ),
        Base(
            "answers",
            {
                **COMMON,
                "arch.enable_mtp": True,
                "arch.mtp_depth": 1,
                "arch.enable_hierarchical_attention": True,
                "dqn.expansion_cost_per_child": 0.002,
            },
            answer_per_capsule,
        ),
        Base("messages", {**COMMON, "training.total_steps": 160}, messages),
        Base("wine", {**COMMON, "training.total_steps": 160, "training.weight_decay": 0.1}, lambda s: table("wine", s)),
        Base("cancer", {**COMMON, "dqn.expansion_selector": "static"}, lambda s: table("cancer", s)),
    )
}
