"""Checks of the answers in puzzle folders: missing, given in the question, contradictory, or moved. Those of capsule
files: `capsule_answers`.

`trm_core.diagnose.checks.puzzle_splits` compares their splits.
"""

from __future__ import annotations

from collections.abc import Sequence

from trm_core.data.puzzles.meaning import meaning_of
from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.checks.capsule_answers import labels_missing
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.puzzle_examples import Examples, told_at
from trm_core.diagnose.puzzle_facts import PuzzleFacts

NO_PUZZLES = "the data are not puzzles"
_LESS_TOLD = (
    "In training, questions say less about their answers than in the held-out split. Answers seem to belong to other "
    "questions, or copies had their questions changed without their answers."
)
_BUILD = "build the folder again with trm build-puzzles, and look at it: trm inspect-dataset FOLDER"


def puzzles_of(evidence: Evidence) -> PuzzleFacts | None:
    """The data, if they are puzzles."""
    return evidence.data if isinstance(evidence.data, PuzzleFacts) else None


def judged(
    evidence: Evidence, what: str, text: str, why: str, *, warns: float, fails: float, certain: float = 0.0
) -> Finding:
    """Judge a share of the training puzzles that should be 0: the count `what` of their survey, divided by all of them.
    text: what follows "... % of the training puzzles". The finding is certain if the share exceeds `certain`.
    """
    facts = puzzles_of(evidence)
    if facts is None or facts.training is None:
        return unknown(NO_PUZZLES)
    share = getattr(facts.training, what) / max(facts.training.examples, 1)
    said = f"{100 * share:.3g} % of the training puzzles {text}"
    if share < warns:
        return ok(said, **{what: share})
    verdict = Verdict.FAIL if share > fails else Verdict.WARN
    sure = "certain" if share > certain else "likely"
    return Finding(verdict, said, sure=sure, numbers={what: share}, why=why, advice=_BUILD)


def answers_missing(evidence: Evidence) -> Finding:
    facts = puzzles_of(evidence)
    if facts is None:
        return labels_missing(evidence)
    if facts.judged is not None and 0 < facts.judged.examples == facts.judged.unanswered:
        return Finding(
            Verdict.FAIL,
            f"every label of the {facts.held_out} puzzles is to be ignored",
            numbers={"unanswered": 1.0},
            why="No answer can be compared with them, so there is no accuracy.",
            advice=_BUILD,
        )
    text = "have no answer, all their labels are to be ignored"
    why = "Nothing is learned from them, but they take their rows of every batch."
    return judged(evidence, "unanswered", text, why, warns=0.02, fails=0.2)


def answers_copied(evidence: Evidence) -> Finding:
    facts = puzzles_of(evidence)
    if facts is not None and facts.training is not None and facts.judged is not None:
        ours, theirs = (some.copied / max(some.examples, 1) for some in (facts.training, facts.judged))
        said = f"{100 * ours:.3g} % of the training puzzles ask for nothing, {100 * theirs:.3g} % held out"
        if ours <= 0.5 < theirs:
            return Finding(
                Verdict.FAIL,
                said,
                "likely",
                {"copied": ours, "held_out": theirs},
                "Copying the question solves the held-out puzzles, so accuracy there says nothing.",
                advice=_BUILD,
            )
        if ours < min(theirs + 0.05, 0.5):
            return ok(said, copied=ours, held_out=theirs)
    text = "have every answer already in its place in the question"
    why = "Copying the question answers them, and that is all that can be learned from them."
    return judged(evidence, "copied", text, why, warns=0.1, fails=0.5, certain=0.9)


def answers_contradict(evidence: Evidence) -> Finding:
    facts = puzzles_of(evidence)
    if facts is not None and facts.ambiguous is not None and facts.ambiguous > 0.02:
        return Finding(
            Verdict.FAIL if facts.ambiguous > 0.1 else Verdict.WARN,
            f"{100 * facts.ambiguous:.3g} % of the training Sudokus have more than one solution",
            numbers={"ambiguous": facts.ambiguous},
            why="Only one of the solutions is the stored answer, and nothing in the question says which.",
            advice="trm build-puzzles sudoku solves every puzzle and leaves out those with several solutions",
        )
    text = "ask the same question as another one, but have another answer"
    why = "No answer can be right for both. Puzzles with several solutions, or lost identifiers, cause this."
    return judged(evidence, "contradicting", text, why, warns=0.01, fails=0.1)


def answers_moved(facts: PuzzleFacts) -> Finding:
    """Do answers belong to their questions? Judged by what question cells tell about the answer in the same place: in
    Sudokus and mazes, for example, given cells stay as they are.
    """
    train, judged, classes = facts.training, facts.judged, facts.puzzles.num_classes or 0
    means = facts.meant
    if facts.compared is not None and means is not None:
        width = meaning_of(facts.puzzles).width
        moved = _moved_by_cells(*facts.compared, classes, [1, -1, width, -width])
        if moved is not None:
            return moved
        if means.other - means.train > means.chance:
            return Finding(
                Verdict.FAIL if means.train < 0.8 * means.other else Verdict.WARN,
                f"what a token of the question mostly means is the answer in {100 * means.train:.0f} % of the "
                f"training cells and in {100 * means.other:.0f} % of the {facts.held_out} ones",
                "likely",
                {"train": means.train, "held_out": means.other},
                _LESS_TOLD,
                advice=_BUILD,
            )
    if train is None or judged is None:
        return unknown("no training or no held-out puzzles to compare")
    here, there = train.told - train.told_apart, judged.told - judged.told_apart
    numbers = {"told": here, "told_held_out": there}
    text = (
        f"the best token of a question tells {here:.3g} nats of the answer in its place, in the held-out puzzles "
        f"{there:.3g}"
    )
    if there < 0.1 and here < 0.1:
        return unknown(f"{text}: too little to tell whose answer it is")
    if here > 0.75 * there:  # the best token of a few hundred tasks varies as much
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if here < 0.6 * there else Verdict.WARN,
        text,
        "likely",
        numbers,
        _LESS_TOLD,
        advice=_BUILD,
    )


def _moved_by_cells(train: Examples, other: Examples, classes: int, offsets: Sequence[int]) -> Finding | None:
    """A finding if a question token tells more about the answer some cells away than about the one in its place."""
    here = told_at(train, classes, 0)
    there = {offset: told_at(train, classes, offset) for offset in offsets if abs(offset) < train.inputs.shape[1]}
    offset = max(there, key=lambda offset: there[offset], default=0)
    if not offset or there[offset] < 1.5 * here + 0.2:
        return None
    everywhere = told_at(other, classes, offset) > told_at(other, classes, 0)
    return Finding(
        Verdict.WARN if everywhere else Verdict.FAIL,
        f"the best token of a question tells {here:.3g} nats of the answer in its place, {there[offset]:.3g} of the "
        f"one {abs(offset)} cells {'after' if offset > 0 else 'before'} it{', held out as well' if everywhere else ''}",
        "possible" if everywhere else "likely",
        {"told": here, "told_there": there[offset], "cells": float(offset)},
        "Answers stand next to the place of their questions. An offset by one, or rows of another length, cause this; "
        "so does a task that asks for the next token.",
        advice=_BUILD,
    )


def check(name: str, symptom: str, look: object) -> Check:
    return Check(name, ("data", "accuracy"), symptom, "ours", ("data",), look)  # type: ignore[arg-type]


CHECKS = (
    check("answers-missing", "the loss is 0 in places, or little is learned", answers_missing),
    check("answers-copied", "puzzles: solved at once, and nothing is learned", answers_copied),
    check("answers-contradict", "puzzles: accuracy stops short of 100 %", answers_contradict),
)
