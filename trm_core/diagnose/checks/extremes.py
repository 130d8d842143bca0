"""Checks of settings at an end of their range, where a part of the training can no longer do its work."""

from __future__ import annotations

from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.checks.settings import can_expand, has_policy
from trm_core.diagnose.evidence import Evidence

_FORGOTTEN = 50  # steps: weights that decay within so few hold nothing
_DEFAULT_GAMMA = 0.99


def one_step(evidence: Evidence) -> Finding:
    steps = evidence.settings.arch.max_steps
    if steps > 1 or not (can_expand(evidence) or has_policy(evidence)):
        return ok(f"arch.max_steps={steps}", steps=steps)
    return Finding(
        Verdict.FAIL,
        "arch.max_steps=1: after the only step nothing but HALT is allowed",
        numbers={"steps": float(steps)},
        why="CONTINUE and EXPAND need a step that comes after them.",
        fix={"arch.max_steps": 4},
    )


def future_discounted(evidence: Evidence) -> Finding:
    config = evidence.settings
    if not has_policy(evidence):
        return unknown("no policy is learned")
    gamma = config.dqn.gamma
    if gamma >= 0.8:
        return ok(f"dqn.gamma={gamma:g}", gamma=gamma)
    return Finding(
        Verdict.FAIL if gamma < 0.5 else Verdict.WARN,
        f"dqn.gamma={gamma:g}: an answer after one more step counts {gamma:g} of one that is given now",
        numbers={"gamma": gamma},
        why="Whatever EXPAND or CONTINUE gain comes a step later. Discounted like this it is worth less than to halt "
        "at once, right or wrong.",
        fix={"dqn.gamma": _DEFAULT_GAMMA},
    )


def regularisation(evidence: Evidence) -> Finding:
    training, dropout = evidence.settings.training, evidence.settings.arch.dropout
    rate = max(training.base_lr, training.muon_lr if training.optimizer == "muon" else 0.0)
    lasting = 1 / max(rate * training.weight_decay, 1e-12)
    numbers = {"dropout": dropout, "steps_to_decay": min(lasting, 1e12)}
    text = f"arch.dropout={dropout:g}; weights decay by weight_decay and rate within {lasting:.3g} steps"
    verdict = Verdict.FAIL if dropout > 0.7 or lasting < _FORGOTTEN else Verdict.WARN
    if dropout <= 0.5 and lasting >= 4 * _FORGOTTEN:
        return ok(text, **numbers)
    fix: dict[str, float] = {}
    if dropout > 0.5:
        fix["arch.dropout"] = 0.1
    if lasting < 4 * _FORGOTTEN:
        fix["training.weight_decay"] = 0.1
    return Finding(
        verdict,
        text,
        "likely",
        numbers,
        "What a step teaches is dropped or decays before the next ones can build on it.",
        fix,
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
