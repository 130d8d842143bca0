"""Check whether halt logits predict which answers are right."""

from __future__ import annotations

import math

import numpy as np

from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.checks.settings import halts_on_whole_answers
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.series import Series, together
from trm_core.diagnose.statistics import block_means, mean_interval

_FIRST_STEPS = 100


def halting_wrong(evidence: Evidence) -> Finding:
    """Do halt logits predict right answers better than a constant would?"""
    if not halts_on_whole_answers(evidence):
        return unknown("the halt logit does not learn whether whole answers are right, or the data are missing")
    loss, knows, right = (
        evidence.metrics[f"train/{name}"].between(0.05 * evidence.learning_steps, evidence.learning_steps)
        for name in ("q_halt_loss", "halt_accuracy", "exact_accuracy")
    )
    other = _halts_on_something_else(*together(loss, knows))
    if other is not None:
        return other
    knows, right = together(knows, right)
    if len(knows) < 20:
        return unknown("too few steps were logged")
    knows, right = knows.tail(0.3), right.tail(0.3)
    begun = max(min(evidence.settings.training.lr_warmup_steps, evidence.learning_steps // 2), _FIRST_STEPS)
    if knows.steps[0] < begun:
        return unknown(f"before step {begun} halt logits have learned too little to say")
    if np.ptp(block_means(right, 3)) > 0.1:
        return unknown("the share of right answers is changing, and halt logits lag behind")
    told, half = mean_interval(knows)
    same = float(right.values.mean())
    same = max(same, 1 - same)
    worse = same - told
    numbers = {"halt_accuracy": told, "constant": same}
    text = (
        f"the halt logit is right for {100 * told:.0f} % of the rows; saying the same of all would be right for "
        f"{100 * same:.0f} %"
    )
    if not worse - half > 0.1:
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if worse > 0.2 else Verdict.WARN,
        text,
        "likely",
        numbers,
        "Rows halt on wrong answers, or continue with right ones. The halt target seems to be inverted, constant, or "
        "that of other rows.",
        advice="compare what the halt logit is trained on with which answers are right (losses.q_halt_loss)",
    )


def _halts_on_something_else(loss: Series, knows: Series) -> Finding | None:
    """A finding if the halt loss contradicts the share of halt logits with the right sign: a row with the wrong sign
    costs at least ln 2, one with the right sign at most ln 2.
    """
    wrong, ln2 = 1 - knows.values, math.log(2)
    below = (ln2 * wrong > 0.2) & (loss.values < 0.5 * ln2 * wrong)
    above = (wrong < 0.002) & (loss.values > ln2 + 0.5)
    if np.count_nonzero(below | above) < max(3, 0.1 * len(loss)):
        return None
    worst = int(np.argmax(np.where(below, ln2 * wrong - loss.values, np.where(above, loss.values - ln2, 0.0))))
    bound = f"at least {ln2 * wrong[worst]:.2g}" if below[worst] else f"at most {ln2:.2g}"
    return Finding(
        Verdict.FAIL,
        f"at step {loss.steps[worst]} q_halt_loss is {loss.values[worst]:.2g}; the halt logit has the right sign in "
        f"{100 * knows.values[worst]:.0f} % of the rows, and then the loss has to be {bound}",
        "certain" if below[worst] else "likely",
        {"q_halt_loss": float(loss.values[worst]), "halt_accuracy": float(knows.values[worst])},
        "The halt logit is not trained on whether whole answers are right, but on cells, on other rows, or on the "
        "opposite.",
        advice="check the target of losses.q_halt_loss",
    )


HALTING = Check(
    "halting-wrong",
    ("accuracy", "dqn"),
    "rows halt on wrong answers, or never",
    "ours",
    ("config", "metrics"),
    halting_wrong,
)
