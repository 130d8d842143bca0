"""Check of what a run's evaluation measured: its own way of halting and opening beside fixed rules."""

from __future__ import annotations

import math
import sys
from typing import Any

from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.evidence import Evidence

_LEAST = 0.02
_EARNS_LESS = 0.1  # a policy misses the reward of so many more right answers
_FAR_SIGHTED = 0.9  # with a smaller discount, less reward in all may be what was asked for

Score = dict[str, Any]


def policy_loses(evidence: Evidence) -> Finding:
    """Compare the policy that the run acts by, `learned` or `act`, with fixed rules: its own reward with that of
    `threshold`, and its right answers with those of opening nothing and thinking all T steps, or the best number.
    """
    found = _scores(evidence)
    name = "learned" if "learned" in found else "act"
    if name not in found or "never" not in found:
        return unknown("no evaluation.json with a policy of its own")
    missed = _earns_less(evidence, found[name], found.get("threshold"))
    return missed or _answers_less(evidence, name, found[name], found["never"])


def reached_by_threshold(evidence: Evidence) -> float | None:
    """Held-out accuracy where halting waits for confidence, and buys until then; None if it was not evaluated."""
    found = _scores(evidence) if evidence.has("run") else {}
    return float(found["threshold"]["accuracy"]) if "threshold" in found else None


def _scores(evidence: Evidence) -> dict[str, Score]:
    """The evaluated policies, by name; the first of each."""
    found: dict[str, Score] = {}
    scores = evidence.facts.evaluation.get("scores")
    for score in scores if isinstance(scores, list) else []:
        if isinstance(score, dict) and _share(score.get("accuracy")) is not None:
            found.setdefault(str(score.get("policy")), score)
    return found


def _earns_less(evidence: Evidence, own: Score, threshold: Score | None) -> Finding | None:
    """Whether the learned policy gets much less of its own reward than `threshold`, which takes the same actions and
    buys by the same rule: then it has not found what pays.
    """
    costs = [_number(score.get(name)) for score in (own, threshold or {}) for name in ("steps", "spent")]
    level = _number(own.get("setting"))
    if threshold is None or not evidence.has("config") or level is None or None in costs:
        return None
    dqn = evidence.settings.dqn
    if dqn.gamma < _FAR_SIGHTED:
        return None
    # A right answer earns the difference of the terminal rewards, and its probability itself.
    worth = dqn.reward_terminal_correct - dqn.reward_terminal_incorrect + 1
    # As HALT is rewarded: a puzzle is right only without a mistake.
    right = "exact_accuracy" if evidence.facts.evaluation.get("puzzles") is True else "accuracy"
    ours, theirs = _share(own.get(right)), _share(threshold.get(right))
    if ours is None or theirs is None:
        return None
    steps, spent, other_steps, other_spent = (cost or 0.0 for cost in costs)
    earned = worth * ours - dqn.reward_step_penalty * steps - level * spent
    possible = worth * theirs - dqn.reward_step_penalty * other_steps - level * other_spent
    missed = possible - earned
    if not missed > worth * max(_EARNS_LESS, _noise(ours, theirs, own.get("rows"))):
        return None
    return Finding(
        Verdict.WARN,  # a symptom, which must not stand before a cause that is no more than likely
        f"by the run's own reward the learned policy earns {missed:.2f} a sample less than halting at a confidence: "
        f"{100 * ours:.1f} % right in {steps:.1f} steps for {spent:.1f} price units, against "
        f"{100 * theirs:.1f} % in {other_steps:.1f} for {other_spent:.1f}",
        "likely",
        {"missed": missed, "learned": ours, "threshold": theirs},
        "Both choose among the same actions and open the same capsules, so Q-learning has not found what pays.",
        advice="train the policy longer (training.total_steps), and look at what it learns from: trm diagnose dqn RUN; "
        "until then trm predict --policy threshold answers better",
    )


def _answers_less(evidence: Evidence, name: str, own: Score, never: Score) -> Finding:
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
        tries += ["--policy never" if steps is None else f"--policy never --max-steps {steps}"]
        advice = f"see what others give: {' or '.join(f'trm eval RUN {words}' for words in tries)}"
    return Finding(Verdict.WARN, text, "possible", numbers, why, advice=advice)


def _lost(ours: float, theirs: float, rows: object) -> bool:
    """Whether the difference is more than noise."""
    return ours < theirs - max(_LEAST, _noise(ours, theirs, rows))


def _noise(ours: float, theirs: float, rows: object) -> float:
    """Two standard deviations of the difference. Both answer the same samples, so this overestimates it. Pooled,
    because if all of a few samples are right by one rule, that one alone has a deviation of 0.
    """
    both, count = (ours + theirs) / 2, _number(rows) or 0.0
    return 2 * math.sqrt(2 * max(both * (1 - both), 0.0) / count) if count >= 1 else 0.0


def _number(value: object) -> float | None:
    """None also for an integer too large for a float."""
    return float(value) if isinstance(value, (int, float)) and abs(value) <= sys.float_info.max else None


def _share(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and 0 <= number <= 1 else None


def _shares(values: object) -> list[float]:
    found = [_share(value) for value in values] if isinstance(values, list) else []
    return [share for share in found if share is not None] if None not in found else []


CHECK = Check(
    "policy-loses",
    ("dqn", "expansion", "accuracy"),
    "the policy is worse than never opening anything, than a threshold, or than a fixed number of steps",
    "ours",
    ("run",),
    policy_loses,
)
