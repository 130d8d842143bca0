"""Checks that held-out samples resemble those of training, and that children lie under their own sketches."""

from __future__ import annotations

import math

from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.checks.puzzle_splits import splits_of_puzzles
from trm_core.diagnose.checks.puzzles import puzzles_of
from trm_core.diagnose.evidence import Evidence

_APART = 0.7  # see `Shift.apart`


def splits_differ(evidence: Evidence) -> Finding:
    puzzles = puzzles_of(evidence)
    if puzzles is not None:
        return splits_of_puzzles(puzzles)
    split, unseen = evidence.file.held_out, evidence.file.unseen
    if unseen is not None and unseen >= 0.02:
        return Finding(
            Verdict.FAIL if unseen >= 0.1 else Verdict.WARN,
            f"{100 * unseen:.3g} % of the {split} labels are of classes that no training sample has",
            numbers={"unseen": unseen},
            why="A class that is never shown cannot be learned, and its samples count as wrong in every evaluation.",
            advice="number the classes of all splits in the same way, and split within each class",
        )
    if not evidence.file.shift:
        return unknown("there is no held-out split of 50 samples and more beside the training split")
    shift = evidence.file.shift
    chance = {name for name, one in shift.items() if one.apart >= _APART and _by_chance(evidence, name)}
    name = max(shift, key=lambda name: (name not in chance, shift[name].apart))
    moved, scale, apart = shift[name].moved, shift[name].scale, 0.0 if name in chance else shift[name].apart
    numbers = {"moved": moved, "scale": scale}
    text = (
        f"the {name} of the {split} split lie {moved:.2g} standard deviations from those of training "
        f"and spread {scale:.2g} times as far (medians over coordinates)"
    )
    carried = _carried_over(evidence, split or "held-out") if apart < 1 else None
    if carried is not None:
        return carried
    if name in chance:
        return ok(f"{text}; rows assigned to the splits at random can differ as much", **numbers)
    if apart < _APART:
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if apart >= 1 else Verdict.WARN,
        text,
        "likely" if apart >= 1 else "possible",
        numbers,
        "The model was not trained on inputs of this kind, so its held-out accuracy says little. The splits may have "
        "been normalised separately, or come from different devices.",
        advice="apply to every split what was fitted on the training split: one scale, one order of columns",
    )


def _carried_over(evidence: Evidence, split: str) -> Finding | None:
    """A finding if what training samples teach does not hold in the held-out split."""
    carried, chance = evidence.file.carried_over, evidence.file.probe.chance if evidence.file.probe else 0.0
    if carried is None:
        return None
    there, inside, cases = carried
    gain, kept = inside - chance, there - chance
    if gain < 0.1 or kept > 0.7 * gain or gain - kept < 5 * math.sqrt(0.25 / cases):
        return None
    return Finding(
        Verdict.FAIL if kept < 0.6 * gain else Verdict.WARN,
        f"what a linear probe learns from training samples is right on {100 * inside:.0f} % of other training samples "
        f"and on {100 * there:.0f} % of the {split} ones (chance {100 * chance:.0f} %)",
        "likely",
        {"inside": inside, "there": there, "chance": chance},
        "The same inputs mean other labels there. Possible causes: classes numbered in another way, an encoder that "
        "was fitted again, columns in another order.",
        advice="build all splits in one go, with one encoder and one list of classes",
    )


def _by_chance(evidence: Evidence, name: str) -> bool:
    """Whether random splits of the same rows can be about as far apart."""
    return evidence.file.shift[name].apart <= 1.1 * evidence.file.shift_by_chance(name)


def children_misplaced(evidence: Evidence) -> Finding:
    fit = evidence.file.placed
    if fit is None:
        return unknown("there are no children, or too few samples")
    if (evidence.file.filler or 0.0) > 0.6:
        return unknown("most capsules have the same children as most others; see children-missing")
    numbers = {"own": fit.own, "other": fit.other}
    text = f"children explain {100 * fit.own:.0f} % of the sketch above them"
    why = "Opening a capsule shows the detail of another one, so EXPAND cannot pay off as it should."
    advice = "check how children were joined to capsules: an offset by one in a loop, or a sort, looks like this"
    if fit.other >= 0.3 and fit.other >= fit.own + 0.2:
        verdict = Verdict.FAIL if fit.other - fit.own > 0.5 * (1 - fit.own) else Verdict.WARN
        text += f", and {100 * fit.other:.0f} % of that of {fit.where}"
        return Finding(verdict, text, "likely", numbers, why, advice=advice)
    least, most = evidence.file.placed_by_stretch
    if most > 0.3 and least < 0.6 * most:
        return Finding(
            Verdict.FAIL if least < 0.5 * most else Verdict.WARN,
            f"in one part of the file children explain {100 * most:.0f} % of the sketch above them, "
            f"in another {100 * max(least, 0.0):.0f} %",
            "likely",
            {**numbers, "least": least, "most": most},
            why,
            advice=advice,
        )
    if fit.other >= 0.1 and fit.own < fit.other + 0.1:
        text += f", no more than those of {fit.where} do ({100 * fit.other:.0f} %)"
        return Finding(Verdict.FAIL, text, "likely", numbers, why, advice=advice)
    probe, alone = evidence.file.probe, evidence.file.told_by_children if fit.own < fit.other + 0.1 else None
    if probe is not None and alone is not None and probe.sketches > probe.chance + 0.1 and alone < 0.05:
        return Finding(
            Verdict.FAIL,
            f"{text}, and of the labels nothing, which sketches tell in {100 * probe.sketches:.0f} % of the samples",
            "likely",
            numbers,
            "Children that belong to other samples say nothing about their own. The same holds for detail that is "
            "noise.",
            advice=advice,
        )
    return ok(text, **numbers)


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
