"""Checks of puzzle folders: answers that are missing, stand in the question, contradict each other, or were moved."""

from __future__ import annotations

from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.puzzle_facts import PuzzleFacts

_NO_PUZZLES = "the data are no puzzles"
_BUILD = "build the folder again with trm build-puzzles, and look at it: trm inspect-dataset FOLDER"


def puzzles_of(evidence: Evidence) -> PuzzleFacts | None:
    """The data, if they are puzzles."""
    return evidence.data if isinstance(evidence.data, PuzzleFacts) else None


def judged(
    evidence: Evidence, what: str, text: str, why: str, *, warns: float, fails: float, certain: float = 0.0
) -> Finding:
    """A share of the training puzzles that should be 0: `what` of their survey over all of them. text: what follows
    "... % of the training puzzles"; certain: above which there is no doubt.
    """
    facts = puzzles_of(evidence)
    if facts is None or facts.training is None:
        return unknown(_NO_PUZZLES)
    share = getattr(facts.training, what) / max(facts.training.examples, 1)
    said = f"{100 * share:.3g} % of the training puzzles {text}"
    if share < warns:
        return ok(said, **{what: share})
    verdict = Verdict.FAIL if share > fails else Verdict.WARN
    sure = "certain" if share > certain else "likely"
    return Finding(verdict, said, sure=sure, numbers={what: share}, why=why, advice=_BUILD)


def answers_missing(evidence: Evidence) -> Finding:
    text = "have no answer, all their labels are to be ignored"
    why = "Nothing is learned from them, but they take their rows of every batch."
    return judged(evidence, "unanswered", text, why, warns=0.02, fails=0.2)


def answers_copied(evidence: Evidence) -> Finding:
    text = "have every answer in its own place of the question"
    why = "Copying the question answers them, and that is all that can be learned from them."
    return judged(evidence, "copied", text, why, warns=0.1, fails=0.5, certain=0.9)


def answers_contradict(evidence: Evidence) -> Finding:
    text = "ask what another one asks, and have another answer"
    why = "No answer can be right for both. Puzzles with several solutions, or identifiers that were lost, do that."
    return judged(evidence, "contradicting", text, why, warns=0.01, fails=0.1)


def answers_moved(facts: PuzzleFacts) -> Finding:
    """Whether training answers belong to their questions, by what cells of the question tell of those in their place:
    in Sudokus and mazes what is given stays as it is.
    """
    train, judged = facts.training, facts.judged
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
    if here > 0.9 * there:
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if here < 0.6 * there else Verdict.WARN,
        text,
        "likely",
        numbers,
        "In training questions say less about their answers than in the held-out split. "
        "Answers that were moved to other questions look like this.",
        advice=_BUILD,
    )


def check(name: str, symptom: str, look: object) -> Check:
    return Check(name, ("data", "accuracy"), symptom, "ours", ("data",), look)  # type: ignore[arg-type]


CHECKS = (
    check("answers-missing", "puzzles: the loss is 0 in places", answers_missing),
    check("answers-copied", "puzzles: solved at once, and nothing is learned", answers_copied),
    check("answers-contradict", "puzzles: accuracy stops short of 100 %", answers_contradict),
)
