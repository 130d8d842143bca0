"""Checks for logged numbers that contradict each other: batches that are not mixed, a weight average that does not
follow the weights, a loss that does not match the accuracy.
"""

from __future__ import annotations

import math

import numpy as np

from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.statistics import mean_interval, middle

_EARLY = 100  # steps: a model becomes accurate before it becomes confident
_UNMIXED = (0.1, 0.3)  # warn, fail: on a scale from randomly drawn labels (0) to one label per batch (1)
_LOUDER = 1.5  # steps between two logged lines may have been larger than those that were logged


def batches_mixed(evidence: Evidence) -> Finding:
    alike, expected = evidence.metrics["train/labels_alike"].between(0, evidence.learning_steps), evidence.alike
    if expected is None or len(alike.finite()) < 10:
        return unknown("rows have several labels, or too few steps were logged")
    mean, half = mean_interval(alike)
    numbers = {"alike": mean, "expected": expected}
    text = (
        f"of two samples that begin in the same step {100 * mean:.1f} % (+-{100 * half:.1f}) have the same label, "
        f"of any two training samples {100 * expected:.1f} %"
    )
    unmixed = (mean - half - expected) / max(1 - expected, 1e-9)
    if unmixed < _UNMIXED[0]:
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if unmixed > _UNMIXED[1] else Verdict.WARN,
        text,
        "certain",
        numbers,
        "Each step pulls towards the few classes of its batch, and the next step away from them. The usual cause: the "
        "rows are sorted in the file, and shuffled only within parts of it.",
        advice="shuffle the rows when the file is written (data.build.shuffle)",
    )


def average_follows(evidence: Evidence) -> Finding:
    """After n steps, the averaged weights have a mean age of at most min(n / 11, d / (1 - d)) steps at decay d (solving
    the recursion of `trm_core.optim.ema`). So their distance from the newest weights is at most that many times the
    largest step.
    """
    training = evidence.settings.training
    lag = evidence.metrics["train/average_lag"].between(0, evidence.learning_steps).finite()
    moved = evidence.metrics["train/update_ratio"].between(0, evidence.learning_steps).finite()
    decay = training.ema_decay
    if not decay or len(lag) < 10 or len(moved) < 10:
        return unknown("no averages, or too few steps were logged")
    steps = int(lag.steps[-1])
    age = min(steps / 11, decay / (1 - decay))
    recent = moved.between(steps - max(5 * age, 20)).values
    found, most = middle(lag.values[-3:]), _LOUDER * age * float(recent.max())
    text = (
        f"averaged weights are {100 * found:.2g} % of their norm away from the raw ones, where "
        f"training.ema_decay={decay:g} allows {100 * most:.2g} %"
    )
    numbers = {"lag": found, "allowed": most}
    if found <= most:
        return ok(text, **numbers)
    shorter = max(0.9, round(1 - 10 / max(evidence.learning_steps, 100), 4))
    return Finding(
        Verdict.FAIL,
        text,
        "likely",
        numbers,
        "The average is what is evaluated and saved, but it holds on to old weights. A decay that is not shortened in "
        "the first steps remembers the initial weights.",
        {"training.ema_decay": shorter} if shorter < decay else {},
        "start with a shorter decay, such as min(decay, n / (n + 10)) after n steps",
    )


def sure_enough(evidence: Evidence) -> Finding:
    """A model whose accuracy is a needs a loss of no more than h(a) + (1 - a) ln(C - 1) nats (Fano): it can give one of
    the C classes probability a and divide the rest evenly, which is also the entropy of such answers. A model whose
    loss and entropy both exceed this is underconfident.
    """
    if evidence.settings.arch.probabilities != "softmax" or evidence.settings.training.label_smoothing:
        return unknown("label smoothing or the like keeps answers unsure on purpose")
    classes = evidence.file.file.num_classes
    learning = evidence.learning_steps
    loss, accuracy, entropy = (
        evidence.metrics[f"train/{name}"].between(_EARLY, learning).tail(0.2, 10).finite()
        for name in ("lm_loss", "accuracy", "prediction_entropy")
    )
    if classes is None or classes < 2 or min(len(loss), len(accuracy), len(entropy)) < 10:
        return unknown("too few steps were logged")
    right, costs = min(float(accuracy.values.mean()), 1.0), float(loss.values.mean())
    unsure, allowed = float(entropy.values.mean()), fano(right, classes)
    text = (
        f"lm_loss {costs:.3g} at an accuracy of {100 * right:.1f} %, which {allowed:.3g} would do for; "
        f"the answers' entropy is {unsure:.3g}"
    )
    numbers = {"loss": costs, "accuracy": right, "fano": allowed, "entropy": unsure}
    learned = right > (evidence.top_share or 0.0) + 0.15
    if not learned or costs < 1.1 * allowed or unsure < allowed + 0.25:
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL,
        text,
        "likely",
        numbers,
        "The answers are right far more often than their probabilities say. Logits that are bounded or scaled before "
        "the loss cause this, typically a softmax before a cross-entropy that applies its own.",
        advice="pass the head's logits to the loss unchanged, without a softmax or a temperature",
    )


def fano(right: float, classes: int) -> float:
    """Loss in nats of the best constant confidence, given that a share `right` of the answers is right."""
    shares = np.array([right, 1 - right])
    known = -float((shares[shares > 0] * np.log(shares[shares > 0])).sum())
    return known + (1 - right) * math.log(max(classes - 1, 1))


UNMIXED = Check(
    "batches-unmixed",
    ("accuracy",),
    "the loss jumps up and down, and held-out answers mirror the last batches",
    "ours",
    ("config", "metrics", "data"),
    batches_mixed,
    watched=True,
)
CHECKS = (
    Check(
        "average-behind",
        ("accuracy", "config"),
        "training goes well, but evaluation does not improve",
        "ours",
        ("config", "metrics"),
        average_follows,
        watched=True,
    ),
    Check(
        "underconfident",
        ("accuracy", "gradients"),
        "answers are right, but the loss stays high",
        "ours",
        ("config", "metrics", "data"),
        sure_enough,
        watched=True,
    ),
)
