"""Checks of loss weights: terms that do nothing, and terms that drown out the rest."""

from __future__ import annotations

import math

from trm_core.config.schema import WeightRange
from trm_core.diagnose.check import Check, Finding, Verdict, ok
from trm_core.diagnose.checks.settings import has_policy
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.series import NOTHING
from trm_core.diagnose.statistics import median


def entropy_and_exploration(evidence: Evidence) -> Finding:
    dqn = evidence.settings.dqn
    on, weight = dqn.enable_entropy_regularization, dqn.entropy_regularization_weight
    if on and weight == 0:
        return Finding(
            Verdict.WARN,
            "dqn.enable_entropy_regularization=true with entropy_regularization_weight=0",
            numbers={"weight": weight},
            why="A term of weight 0 is not in the loss.",
            fix={"dqn.entropy_regularization_weight": 0.01},
        )
    return ok(f"entropy term {'on' if on else 'off'}, weight {weight:g}", weight=weight)


def weights_zero(evidence: Evidence) -> Finding:
    weights = evidence.settings.loss_weights
    dqn = weights.dqn_loss
    highest = dqn.high if isinstance(dqn, WeightRange) else dqn
    if weights.lm_loss == 0:
        return Finding(
            Verdict.FAIL,
            "loss_weights.lm_loss=0",
            numbers={"lm_loss": 0},
            why="Nothing teaches the answers.",
            fix={"loss_weights.lm_loss": 1.0},
        )
    if has_policy(evidence) and highest == 0:
        return Finding(
            Verdict.FAIL,
            "loss_weights.dqn_loss=0",
            numbers={"dqn_loss": 0},
            why="Nothing teaches the Q-head.",
            fix={"loss_weights.dqn_loss": 0.5},
        )
    if weights.q_halt_loss == 0 and evidence.settings.arch.max_steps > 1 and not has_policy(evidence):
        return Finding(
            Verdict.FAIL,
            "loss_weights.q_halt_loss=0, but the halt logit decides when to halt",
            numbers={"q_halt_loss": 0},
            why="Nothing teaches when to halt.",
            fix={"loss_weights.q_halt_loss": 0.5},
        )
    drowned = _drowned(evidence)
    if drowned is not None:
        return drowned
    return ok(f"lm_loss {weights.lm_loss:g}, dqn_loss up to {highest:g}", lm_loss=weights.lm_loss, dqn_loss=highest)


def _drowned(evidence: Evidence) -> Finding | None:
    """A finding if an auxiliary term drowns out the loss of the answers. dqn_loss and cmi_loss have their own
    optimiser; the entropy term and the predictor of curiosity do not affect the model.
    """
    weights = evidence.settings.loss_weights
    # Early values, because once answers are memorised there is no loss left to compare with.
    early = {name: series.head(0.5) for name, series in evidence.metrics.series.items()}
    answer = weights.lm_loss * median(early.get("train/lm_loss", NOTHING))
    for name in ("reconstruction_loss", "vq_loss", "mtp_loss", "q_halt_loss", "q_continue_loss"):
        weight, value = float(getattr(weights, name)), median(early.get(f"train/{name}", NOTHING))
        share = weight * value / max(weight * value + answer, 1e-12)
        numbers = {"weight": weight, "share": share}
        # Without a run, only weights that no task can need.
        apart = weight > 200 * weights.lm_loss if math.isnan(share) else share > 0.97
        if apart and (math.isnan(share) or weight > 5 * weights.lm_loss):
            said = (
                ""
                if math.isnan(share)
                else f"; it makes {100 * share:.1f} % of the two, {value:.3g} against {answer:.3g}"
            )
            return Finding(
                Verdict.FAIL,
                f"loss_weights.{name}={weight:g} beside lm_loss={weights.lm_loss:g}{said}",
                "likely",
                numbers,
                "Gradients are clipped together: beside a term of this weight the gradient of the answer all but "
                "disappears.",
                {f"loss_weights.{name}": type(weights).model_fields[name].default},
            )
    return None


LOSS_WEIGHTS = Check(
    "loss-weights", ("config", "accuracy", "dqn"), "a loss term does nothing", "ours", ("config",), weights_zero
)
ENTROPY_WEIGHT = Check(
    "entropy-weight",
    ("config", "dqn", "expansion"),
    "the entropy term does nothing",
    "pipeline.md Issue 4",
    ("config",),
    entropy_and_exploration,
)
