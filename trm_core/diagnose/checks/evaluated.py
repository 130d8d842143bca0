"""Check of what a run's evaluation measured: its own way of halting and opening beside fixed rules."""

from __future__ import annotations

import math
from typing import Any

from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.evidence import Evidence

_LEAST = 0.02


def policy_loses(evidence: Evidence) -> Finding:
    """Compare the policy that the run acts by, `learned` or `act`, with opening nothing and thinking all T steps, or
    the number of them after which most samples are right.
    """
    found: dict[str, dict[str, Any]] = {}
    scores = evidence.facts.evaluation.get("scores")
    for score in scores if isinstance(scores, list) else []:
        if isinstance(score, dict) and _share(score.get("accuracy")) is not None:
            found.setdefault(str(score.get("policy")), score)
    name = "learned" if "learned" in found else "act"
    if name not in found or "never" not in found:
        return unknown("no evaluation.json with a policy of its own")
    own, never = found[name], found["never"]
    rows = never.get("rows")
    ours, theirs, steps = float(own["accuracy"]), float(never["accuracy"]), None
    exact, by_step = _share(own.get("exact_accuracy")), _shares(never.get("exact_by_step"))
    if exact is not None and by_step and _lost(exact, max(by_step), rows):
        ours, theirs, steps = exact, max(by_step), by_step.index(max(by_step)) + 1
    after = "" if steps is None else f" and stopping after {steps} step{'s' if steps > 1 else ''}"
    text = f"policy {name} {100 * ours:.1f} % right, opening nothing{after} {100 * theirs:.1f} %"
    numbers = {name: ours, "never": theirs} | ({} if steps is None else {"steps": float(steps)})
    if not _lost(ours, theirs, rows):
        return ok(text, **numbers)
    if name == "learned":
        why = "What the policy buys, or how long it thinks, makes its answers worse. It needs longer to learn."
        advice = "train longer, or raise loss_weights.dqn_loss"
    else:
        why = (
            "Rows halt too early, or think on until right answers are lost: the halt logit says too little about which "
            "answers are right, or the threshold does not suit it."
        )
        tries = [] if evidence.has("config") and evidence.settings.arch.enable_q_continue else ["arch.halt_threshold=0"]
        tries += [] if steps is None else [f"--policy never --max-steps {steps}"]
        advice = f"see what others give: {' or '.join(f'trm eval RUN {words}' for words in tries)}"
    return Finding(Verdict.WARN, text, "possible", numbers, why, advice=advice)


def _lost(ours: float, theirs: float, rows: object) -> bool:
    """Whether the difference is more than noise. Both answer the same samples, so their noise is overestimated. Pooled,
    because if all of a few samples are right by one rule, that one alone has a deviation of 0.
    """
    both = (ours + theirs) / 2
    noise = 2 * math.sqrt(2 * max(both * (1 - both), 0.0) / rows) if isinstance(rows, int) and rows > 0 else 0.0
    return ours < theirs - max(_LEAST, noise)


def _share(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and 0 <= value <= 1 else None


def _shares(values: object) -> list[float]:
    found = [_share(value) for value in values] if isinstance(values, list) else []
    return [share for share in found if share is not None] if None not in found else []


CHECK = Check(
    "policy-loses",
    ("dqn", "expansion", "accuracy"),
    "the policy is worse than never opening anything, or than a fixed number of steps",
    "ours",
    ("run",),
    policy_loses,
)
