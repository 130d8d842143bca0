"""Checks of what is learned: does the loss fall, is accuracy above guessing, does it generalise?"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from trm_core.diagnose.answered import answered, held_out_rows, newest, trained_alike
from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.checks.evaluated import reached_by_threshold
from trm_core.diagnose.checks.extremes import most_decay
from trm_core.diagnose.checks.puzzles import puzzles_of
from trm_core.diagnose.checks.settings import can_expand, slower
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.series import Series
from trm_core.diagnose.statistics import block_means, mean_interval, rising

_EARLY = 100  # steps: at first a model gives one answer only, and for longer where sketches say little
_WHOLE_GAP = 0.6  # sound ARC and Sudoku-Extreme runs learn all training puzzles and solve half of the others
_MOST = 0.5  # of the mistakes
_BY_LUCK = 0.01
_FAR = 6  # standard deviations of later values: the best of some hundred evaluations is never that lucky
_FREQUENT = 0.9  # above this share of one label, accuracy says little
_FEWER = 0.9  # of the mistakes at the middle of the run: below this it is still learning


def loss_falls(evidence: Evidence) -> Finding:
    loss = evidence.metrics["train/lm_loss"].between(0, evidence.learning_steps).finite()
    means = block_means(loss)
    if len(means) < 4:
        return unknown("too few steps were logged")
    chance = rising(loss)
    numbers = {"first": float(means[0]), "last": float(means[-1]), "p_falling": 1 - chance}
    text = f"lm_loss {means[0]:.3g} -> {means[-1]:.3g}"
    if chance > 0.95 or means[-1] < 0.9 * means[0]:
        return ok(text, **numbers)
    guessing = math.inf if evidence.guessing is None else evidence.guessing
    if evidence.settings.training.init_from is not None and means[-1] < 0.9 * guessing:
        return ok(f"{text}: the initial weights already know the answers", **numbers)
    return Finding(
        Verdict.WARN,
        f"{text}: no trend beyond chance (p = {1 - chance:.2g})",
        "likely",
        numbers,
        "Answers are not being learned. The usual reasons are learning rates, labels, or a part without a gradient.",
        {key: 3 * value for key, value in slower(evidence, 1).items()},
    )


def at_chance(evidence: Evidence) -> Finding:
    metrics, chance = evidence.metrics, evidence.top_share
    accuracy = metrics["train/accuracy"].tail(0.2, 10)
    if chance is None or len(accuracy.finite()) < 5:
        return unknown("no labels, or too few steps were logged")
    if metrics.last_step < _EARLY:
        return unknown(f"{metrics.last_step} steps are too early to say")
    mean, half = mean_interval(accuracy)
    numbers = {"accuracy": mean, "chance": chance}
    text = f"accuracy {100 * mean:.1f} % (+-{100 * half:.1f}), always the most frequent label {100 * chance:.1f} %"
    if mean - half > chance:
        return ok(text, **numbers)
    done = metrics.last_step / evidence.settings.training.total_steps
    fails = done > 0.3 and mean < chance + 0.01
    if chance > _FREQUENT:
        # That label may well be the best answer to every sample. Loss still shows whether confidence varies with them.
        loss, guessing = mean_interval(metrics["train/lm_loss"].tail(0.2, 10)), evidence.guessing or 0.0
        numbers |= {"loss": loss[0], "guessing": guessing}
        text += f"; lm_loss {loss[0]:.3g} (+-{loss[1]:.2g}), guessing by how frequent labels are costs {guessing:.3g}"
        if sum(loss) < guessing:
            return ok(text, **numbers)
        fails = False
    return Finding(
        Verdict.FAIL if fails else Verdict.WARN,
        text,
        "likely",
        numbers,
        "The model answers no better than a constant. First see the checks of data, rates and gradients above.",
        {key: 3 * value for key, value in slower(evidence, 1).items()},
    )


def predictions_collapse(evidence: Evidence) -> Finding:
    """Collapse onto one class in training; or a partial one, where held-out answers are counted."""
    whole = _whole_collapse(evidence)
    return whole if whole.verdict is Verdict.FAIL else _half_collapse(evidence) or whole


def _whole_collapse(evidence: Evidence) -> Finding:
    share = evidence.metrics["train/prediction_top_share"].between(0, evidence.learning_steps).tail(0.2, 10)
    top = evidence.top_share
    if len(share.finite()) < 5 or top is None:
        return unknown("too few steps were logged")
    if evidence.metrics.last_step < _EARLY:
        return unknown(f"{evidence.metrics.last_step} steps are too early to say")
    mean = float(np.mean(share.finite().values))
    text = f"{100 * mean:.0f} % of the predictions are one class, {100 * top:.0f} % of the labels are"
    if mean < 0.95 or mean < top + 0.2:
        return ok(text, share=mean, labels=top)
    return Finding(
        Verdict.FAIL,
        text,
        "likely",
        {"share": mean, "labels": top},
        "The model gives the same answer for every input. Learning rates that are too high, labels that do not fit, or "
        "a dead part can cause this.",
        slower(evidence, 10),
    )


def _half_collapse(evidence: Evidence) -> Finding | None:
    """A finding if most of the mistakes come from classes that are left out or answered far too often. The counts were
    tested against chance when they were recorded.
    """
    evaluations = answered(evidence)
    if not evaluations or evaluations[-1].of_mistakes < _MOST:
        return None
    newest = evaluations[-1]
    middle = max((number for number, one in enumerate(evaluations) if one.step <= newest.step / 2), default=0)
    since = evaluations[middle:]
    lasts = len(since) > 1 and all(one.of_mistakes >= _MOST for one in since)
    unfinished = not lasts or newest.mistakes < _FEWER * since[0].mistakes
    if not unfinished and _no_better_is_known(evidence, newest.accuracy):
        return None
    return Finding(
        Verdict.WARN if unfinished else Verdict.FAIL,
        f"{100 * newest.left_out:.0f} % of the held-out labels are of classes that are hardly ever answered, "
        f"{100 * newest.in_excess:.0f} % of the answers are too many of their class "
        f"({100 * newest.top_answer:.0f} % are one class, {100 * newest.top_label:.0f} % of the labels): "
        f"{100 * newest.of_mistakes:.0f} % of the mistakes",
        "possible" if unfinished else "likely",
        asdict(newest) | {"of_mistakes": newest.of_mistakes, "mistakes_before": since[0].mistakes},
        "Most mistakes go in one direction, beyond chance (p < 0.001). "
        + (
            "This is new, or mistakes are still becoming fewer: it may pass."
            if unfinished
            else "Class weights or priors that do not fit the data, or labels missing in training, cause this."
        ),
        advice="compare the labels of the splits (trm inspect-dataset), and check what weights the classes in the loss",
    )


def _no_better_is_known(evidence: Evidence, accuracy: float) -> bool:
    """Whether nothing can be opened and a linear probe of the sketches is no better than the model. Where sketches do
    not separate two classes, always answering one of them is as good as any answer.
    """
    if evidence.file_has_children is False or can_expand(evidence) or evidence.file.probe is None:
        return False
    return accuracy > evidence.file.probe.sketches - 0.05


def generalises(evidence: Evidence) -> Finding:
    at, there = newest(evidence, "accuracy")
    # Training accuracy at the time of that evaluation; training may have gone on long after it.
    train = evidence.metrics["train/final_accuracy"].between(0, at).tail(0.2, 10).finite()
    if len(train) < 5 or not math.isfinite(there):
        return unknown("no evaluation was logged")
    mean, what, allowed = mean_interval(train)[0], "accuracy", 0.2
    exact = evidence.metrics["train/exact_accuracy"].between(0, at).tail(0.2, 10).finite()
    exact_there = newest(evidence, "exact_accuracy")[1]
    if len(exact) >= 5 and mean - there < allowed and mean_interval(exact)[0] - exact_there > _WHOLE_GAP:
        # Most cells of a puzzle are given or easy, so a model that solves no puzzle may be right on most cells.
        mean, what, there, allowed = mean_interval(exact)[0], "exact accuracy", exact_there, _WHOLE_GAP
    gap = mean - there
    text = f"{what} {100 * mean:.1f} % in training, {100 * there:.1f} % held out"
    rows = held_out_rows(evidence)
    by_chance = math.sqrt(there * (1 - there) / rows) if rows else 0.0
    if gap < allowed + by_chance:
        return ok(text, gap=gap)
    elsewhere = reached_by_threshold(evidence)
    if what == "accuracy" and elsewhere is not None and mean - elsewhere < allowed + by_chance:
        return ok(f"{text}, but {100 * elsewhere:.1f} % by a policy that buys until it is confident", gap=gap)
    # The pooled standard deviation, because few samples may all be wrong and have none of their own.
    both = (mean + there) / 2
    if rows and gap < 3 * math.sqrt(both * (1 - both) / rows):
        return unknown(f"{text}, of {rows} samples, too few to tell")
    if trained_alike(evidence, mean)[0] - there < allowed + by_chance:
        return unknown(f"{text}, on one of {1 + len(evidence.others)} files, which may be the harder one")
    repeated = evidence.file.repeated if evidence.data is not None else 0.0
    if repeated > 0.5:
        return Finding(
            Verdict.FAIL,
            f"{text}; {100 * repeated:.0f} % of the training samples are exact repeats of others",
            "likely",
            {"gap": gap, "repeated": repeated},
            "The few distinct samples are memorised. It looks as if one part of the source was read again and again "
            "instead of the next.",
            advice="check how the source was put together: trm inspect-dataset FILE",
        )
    if puzzles_of(evidence) is not None:
        return Finding(
            Verdict.WARN,
            text,
            "likely",
            {"gap": gap},
            "The training puzzles are memorised.",
            advice="more puzzles, or more copies of each: trm build-puzzles --augmentations",
        )
    training, more = evidence.settings.training, {}
    decay = min(max(10 * training.weight_decay, 0.1), most_decay(evidence))
    if decay > training.weight_decay:
        more["training.weight_decay"] = decay
    if evidence.settings.arch.dropout < 0.1:
        more["arch.dropout"] = 0.1
    return Finding(
        Verdict.WARN,
        text,
        "likely",
        {"gap": gap},
        "The training samples are memorised. More samples (copies: data.build.augment_*) help more than weight decay.",
        more,
    )


def plateau(evidence: Evidence) -> Finding:
    series = evidence.metrics["eval/accuracy"].finite()
    if len(series) < 6:
        return unknown("fewer than six evaluations")
    best = int(np.argmax(series.values))
    fall = float(series.values[best] - series.values[-2:].mean())
    top, at = 100 * series.values[best], int(series.steps[best])
    text = f"held-out accuracy {100 * series.last:.1f} %, best {top:.1f} % at step {at}"
    if fall < 0.05 or best > len(series) // 2:
        return ok(text, fall=fall)
    # The best of many evaluations is partly luck even at constant skill, so only those after it show a trend.
    after = Series(series.steps[best + 1 :], -series.values[best + 1 :])
    far_below = len(after) >= 5 and fall > _FAR * after.values.std(ddof=1)
    if not rising(after) < _BY_LUCK and not far_below:
        return ok(f"{text}; single evaluations differ as much", fall=fall)
    return Finding(
        Verdict.WARN,
        text,
        "likely",
        {"fall": fall},
        "What had been learned by then has been lost for half of the run.",
        _shorter(evidence, at),
    )


def _shorter(evidence: Evidence, steps: int) -> dict[str, Any]:
    """Overrides for a run of `steps` steps, with warm-up and predictor steps that fit into it."""
    steps = max(steps, 1)
    fix = {"training.total_steps": steps}
    if evidence.config is None:
        return fix
    training = evidence.config.training
    if training.lr_warmup_steps > steps / 2:
        fix["training.lr_warmup_steps"] = max(steps // 20, min(10, steps // 2), 1)
    if training.predictor_steps is not None and training.predictor_steps > steps:
        fix["training.predictor_steps"] = max(steps * training.predictor_steps // training.total_steps, 1)
    return fix


def reconstruction(evidence: Evidence) -> Finding:
    weight, cosine = evidence.settings.loss_weights.reconstruction_loss, evidence.metrics["train/cos_sim_mean"]
    late = cosine.between(0, evidence.learning_steps).tail(0.2).finite()
    if not weight or len(late) < 5:
        return unknown("reconstruction_loss is off, or too few steps were logged")
    if not late.values.any():
        return unknown("the sketches are all zeros, so there is nothing to reconstruct")
    mean = float(np.mean(late.values))
    text = f"cosine between sketches and their prediction from z_H {mean:.2f}"
    return (
        ok(text, cosine=mean)
        if mean > 0
        else Finding(
            Verdict.WARN,
            text,
            "possible",
            {"cosine": mean},
            "z_H does not retain what the capsules contain.",
            {"loss_weights.reconstruction_loss": 2 * weight},
        )
    )


COLLAPSE = Check(
    "predictions-collapse",
    ("accuracy",),
    "all predictions are the same, or some classes are never predicted",
    "pipeline.md Workflow 5 step 3",
    ("config", "metrics", "data"),
    predictions_collapse,
    watched=True,
)
CHECKS = (
    Check(
        "accuracy-at-chance",
        ("accuracy",),
        "accuracy is stuck at a low value",
        "pipeline.md Issue 8, Workflow 5",
        ("config", "metrics", "data"),
        at_chance,
        watched=True,
    ),
    Check(
        "loss-not-falling",
        ("accuracy", "gradients"),
        "lm_loss does not fall",
        "pipeline.md Workflow 5 step 1",
        ("config", "metrics"),
        loss_falls,
    ),
    Check("overfitting", ("accuracy",), "held-out accuracy is far below", "ours", ("config", "metrics"), generalises),
    Check("accuracy-falls", ("accuracy",), "held-out accuracy falls", "ours", ("metrics",), plateau),
    Check(
        "reconstruction",
        ("accuracy", "capsule-state"),
        "cos_sim_mean below 0.5",
        "pipeline.md metrics to watch",
        ("config", "metrics"),
        reconstruction,
    ),
)
