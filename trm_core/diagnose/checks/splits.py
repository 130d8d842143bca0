"""Checks of what lies where: held-out samples beside those of training, and children under their sketches."""

from __future__ import annotations

import math

from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.checks.puzzles import puzzles_of
from trm_core.diagnose.evidence import Evidence


def splits_differ(evidence: Evidence) -> Finding:
    if puzzles_of(evidence) is not None:
        return unknown("tokens have no scale")
    split, unseen = evidence.file.held_out, evidence.file.unseen
    if unseen is not None and unseen >= 0.02:
        return Finding(
            Verdict.FAIL if unseen >= 0.1 else Verdict.WARN,
            f"{100 * unseen:.2g} % of the {split} labels are of classes that no training sample has",
            numbers={"unseen": unseen},
            why="A class that is never shown cannot be learned, and counts as wrong in every evaluation.",
            advice="number the classes of all splits alike, and split within each class",
        )
    if not evidence.file.shift:
        return unknown("there is no held-out split of 50 samples and more beside the training split")
    name = max(evidence.file.shift, key=lambda name: _apart(*evidence.file.shift[name]))
    moved, scale = evidence.file.shift[name]
    numbers = {"moved": moved, "scale": scale}
    text = (
        f"the {name} of the {split} split lie {moved:.2g} standard deviations from those of training "
        f"and spread {scale:.2g} times as far (medians over coordinates)"
    )
    apart = _apart(moved, scale)
    if apart < 0.7:
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if apart >= 1 else Verdict.WARN,
        text,
        "likely" if apart >= 1 else "possible",
        numbers,
        "The model was not trained on inputs of this kind, so its held-out accuracy says little. Splits that were "
        "normalised apart, or come from another device, look like this.",
        advice="apply to every split what was fitted to the training split: one scale, one order of columns",
    )


def _apart(moved: float, scale: float) -> float:
    """1: half a standard deviation, or one and a half times the spread."""
    return max(moved / 0.5, abs(math.log(max(scale, 1e-9))) / math.log(1.5))


def children_misplaced(evidence: Evidence) -> Finding:
    if evidence.file.placed is None:
        return unknown("there are no children, or too few samples")
    own, other, where = evidence.file.placed
    numbers = {"own": own, "other": other}
    text = f"children explain {100 * own:.0f} % of the sketch above them"
    if other < 0.3 or other < own + 0.2:
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if other - own > 0.5 * (1 - own) else Verdict.WARN,
        f"{text}, and {100 * other:.0f} % of that of {where}",
        "likely",
        numbers,
        "Whoever opens a capsule is shown the detail of another one, so EXPAND cannot pay as it should.",
        advice="check how children were joined to capsules: an offset by one in a loop or a sort looks like this",
    )


CHECKS = (
    Check(
        "splits-differ",
        ("data", "accuracy"),
        "held-out accuracy is far below training's",
        "ours",
        ("data",),
        splits_differ,
    ),
    Check("children-misplaced", ("data", "expansion"), "EXPAND does not pay", "ours", ("data",), children_misplaced),
)
