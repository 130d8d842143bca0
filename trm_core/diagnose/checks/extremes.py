"""Checks for settings at an extreme of their range, where a part of training can no longer work."""

from __future__ import annotations

import math

from trm_core.diagnose.answered import newest, trained_alike
from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.checks.settings import can_expand, halts_on_whole_answers, has_policy
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.series import together
from trm_core.diagnose.statistics import mean_interval, median

_HALTING = "action_1_halt"
_FORGOTTEN = 50  # steps: weights that decay within fewer retain nothing
_LASTING = 200  # steps: weights that decay no faster retain enough
_USUAL_RATE = 0.02
_DEFAULT_GAMMA = 0.99


def one_step(evidence: Evidence) -> Finding:
    steps = evidence.settings.arch.max_steps
    halted = evidence.metrics[f"train/{_HALTING}"].tail(0.5).finite()
    counted, halting = together(evidence.metrics["train/ponder_cost"], halted)
    # If a share h of the rows halts at every step, these have taken 1 / h steps. This holds only on average: rows that
    # began together halt together, and where none halts, nothing is counted.
    begun = float((counted.values * halting.values).sum()) / max(len(halted), 1)
    if begun > 1.5:
        count, share = median(counted), float(halted.values.mean())
        return Finding(
            Verdict.FAIL,
            f"rows that halt count {count:.3g} steps, but {100 * share:.0f} % of the rows halt at every step",
            "likely",
            {"counted": count, "halting": share, "begun": begun},
            "The step counter is not reset when a row gets a new sample, so the last step seems to be reached at once.",
            advice="check what resets Carry.steps when a row gets a new sample",
        )
    first = round(0.1 * evidence.learning_steps), round(0.4 * evidence.learning_steps)
    early, right = (evidence.metrics[f"train/{name}"].between(*first).finite() for name in (_HALTING, "exact_accuracy"))
    halts = steps > 1 and not has_policy(evidence) and halts_on_whole_answers(evidence)
    if halts and len(early) >= 5 and median(early) > 0.98 and median(right) < 0.5:
        return Finding(
            Verdict.FAIL,
            f"after a tenth of the run every row halts after its first step, with {100 * median(right):.0f} % of them "
            "right",
            "likely",
            {"halting": median(early), "right": median(right)},
            "Rows should halt once they are likely right, and few are at first. The halt target seems to be one that "
            "nearly every answer meets.",
            advice="check what the halt logit is trained on: it should be whether whole answers are right "
            "(losses.q_halt_loss)",
        )
    if steps > 1 or not (can_expand(evidence) or has_policy(evidence)):
        return ok(f"arch.max_steps={steps}", steps=steps)
    return Finding(
        Verdict.FAIL,
        "arch.max_steps=1: after the only step nothing but HALT is allowed",
        numbers={"steps": float(steps)},
        why="CONTINUE and EXPAND need a step after them.",
        fix={"arch.max_steps": 4},
    )


def future_discounted(evidence: Evidence) -> Finding:
    config = evidence.settings
    if not has_policy(evidence):
        return unknown("no policy is learned")
    early = median(evidence.metrics["train/dqn_ended_early"].tail(0.5))
    if early > 0.05:
        return Finding(
            Verdict.FAIL,
            f"{100 * early:.0f} % of the replayed CONTINUE and EXPAND were stored as the end of their episode",
            numbers={"ended_early": early},
            why="Nothing that comes after such an action counts, so it is worth less than halting at once.",
            advice="check what is passed as `done` to trm_core.dqn.replay.ReplayBuffer.complete: only HALT ends an "
            "episode",
        )
    gamma = config.dqn.gamma
    if gamma >= 0.8:
        return ok(f"dqn.gamma={gamma:g}", gamma=gamma)
    return Finding(
        Verdict.FAIL if gamma < 0.5 else Verdict.WARN,
        f"dqn.gamma={gamma:g}: an answer after one more step counts {gamma:g} of one that is given now",
        numbers={"gamma": gamma},
        why="The gain of EXPAND or CONTINUE comes a step later. With this discount it is worth less than halting at "
        "once, right or wrong.",
        fix={"dqn.gamma": _DEFAULT_GAMMA},
    )


def regularisation(evidence: Evidence) -> Finding:
    training, dropout = evidence.settings.training, evidence.settings.arch.dropout
    smoothing = training.label_smoothing
    lasting = 1 / max(_usual_rate(evidence) * training.weight_decay, 1e-12)
    numbers = {"dropout": dropout, "smoothing": smoothing, "steps_to_decay": min(lasting, 1e12)}
    text = (
        f"arch.dropout={dropout:g}, training.label_smoothing={smoothing:g}; weights decay by weight_decay and rate "
        f"within {lasting:.3g} steps"
    )
    verdict = Verdict.FAIL if dropout > 0.7 or smoothing > 0.7 or lasting < _FORGOTTEN else Verdict.WARN
    if dropout <= 0.5 and smoothing <= 0.3 and lasting >= _LASTING:
        return _harder_than_held_out(evidence) or ok(text, **numbers)
    fix: dict[str, float] = {}
    if dropout > 0.5:
        fix["arch.dropout"] = 0.1
    if smoothing > 0.3:
        fix["training.label_smoothing"] = 0.0
    if lasting < _LASTING:
        fix["training.weight_decay"] = min(0.1, most_decay(evidence))
    return Finding(
        verdict,
        text,
        "likely",
        numbers,
        "What one step teaches is dropped, smoothed away or decayed before the next steps can build on it.",
        fix,
    )


def most_decay(evidence: Evidence) -> float:
    """The strongest weight decay with which weights last for `_LASTING` steps."""
    return 1 / (1.01 * _LASTING * max(_usual_rate(evidence), 1e-12))


def _usual_rate(evidence: Evidence) -> float:
    training = evidence.settings.training
    rate = max(training.base_lr, training.muon_lr if training.optimizer == "muon" else 0.0)
    return min(rate, _USUAL_RATE)  # a rate that is too high is a separate fault


def _harder_than_held_out(evidence: Evidence) -> Finding | None:
    """A finding if training samples are answered far worse than held-out ones."""
    at, held_out = newest(evidence, "accuracy")
    last = min(at, evidence.learning_steps)
    mean, half = mean_interval(evidence.metrics["train/final_accuracy"].between(0, last).tail(0.2, 10))
    gap = held_out - trained_alike(evidence, mean)[1]
    # Exploration lowers training accuracy: it halts too early and leaves closed what the policy would open.
    epsilon = mean_interval(evidence.metrics["train/dqn_epsilon"].between(0, last).tail(0.2, 10))[0]
    explored = 0.0 if math.isnan(epsilon) else epsilon
    if not gap > 0.12 + explored + half:
        return None
    far = gap > 0.25 + explored + half
    return Finding(
        Verdict.FAIL if far else Verdict.WARN,
        f"accuracy {100 * mean:.1f} % in training, {100 * held_out:.1f} % held out",
        "likely" if far else "possible",
        {"train": mean, "held_out": held_out},
        "Training samples are far harder than held-out ones. Augmentation, erasing or noise that is stronger than "
        "intended causes this.",
        advice="inspect some training inputs as the model gets them, and check what is drawn per row and what per "
        "capsule",
    )


CHECKS = (
    Check(
        "one-step", ("config", "dqn", "expansion"), "action_2_expand is 0, all rows halt", "ours", ("config",), one_step
    ),
    Check(
        "future-discounted",
        ("config", "dqn", "expansion"),
        "the policy halts at once",
        "ours",
        ("config",),
        future_discounted,
    ),
    Check("regularisation", ("config", "accuracy"), "training accuracy stays low", "ours", ("config",), regularisation),
)
