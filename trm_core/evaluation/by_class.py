"""Where a policy's mistakes are: how many answers to each class are right, and what was answered instead."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trm_core.data.puzzles.reader import PuzzleData
from trm_core.errors import UsageError
from trm_core.evaluation.answer_shares import Confusion, confusion
from trm_core.evaluation.intervals import wilson_interval
from trm_core.evaluation.report import EvaluationData, Score
from trm_core.evaluation.rollout import Outcome

MOST_CLASSES = 1000  # nobody reads a larger matrix, and its counts would fill megabytes


@dataclass(frozen=True)
class OneClass:
    """What happened where this class is the label. None where it never is."""

    name: str
    count: int  # labels: samples, or capsules where each has its own
    samples: int  # samples that have such a label
    right: float | None
    low: float | None  # 95 % interval of `right`
    high: float | None
    instead: str | None  # the class most often answered in its place; None: there is none
    instead_share: float | None  # share of all its labels


def names_of_classes(data: EvaluationData, classes: int) -> list[str]:
    """The class names in the evaluated file, or numbers where it has none. Raises UsageError if there are no classes to
    tell apart, or too many.
    """
    file = data.file
    if isinstance(file, PuzzleData):
        raise UsageError(
            f"{file.path} holds puzzles: an answer is a whole grid, not one of several classes",
            hint="leave --by-class out; the table has the share of right cells",
        )
    if classes > MOST_CLASSES:
        raise UsageError(
            f"{file.path} has {classes} classes; --by-class tells at most {MOST_CLASSES} apart",
            hint="leave --by-class out",
        )
    names = file.manifest.get("class_names")
    if isinstance(names, list) and len(names) == classes:
        return names
    return [str(number) for number in range(classes)]


def by_class(score: Score, outcome: Outcome, data: EvaluationData, names: list[str]) -> dict[str, Any]:
    """The record for one line of the table. Rows of the matrix are labels, columns are answers."""
    counted = confusion(outcome.prediction.cpu(), data.labels(), len(names))
    return {
        "policy": score.policy,
        "setting": score.setting,
        "classes": [asdict(one) for one in classes_of(counted, names)],
        "matrix": counted.matrix.tolist(),
    }


def classes_of(counted: Confusion, names: list[str]) -> list[OneClass]:
    """What the counts say about each class."""
    found = []
    for number, (name, answers, samples) in enumerate(
        zip(names, counted.matrix.tolist(), counted.rows.tolist(), strict=True)
    ):
        count, right = sum(answers), answers[number]
        if not count:
            found.append(OneClass(name, 0, 0, None, None, None, None, None))
            continue
        # Answers of one sample depend on each other: the interval is as wide as if each sample had one.
        low, high = wilson_interval(right / count * samples, samples)
        most, other = max((0 if answer == number else n, -answer) for answer, n in enumerate(answers))
        found.append(
            OneClass(
                name, count, samples, right / count, low, high,
                instead=names[-other] if most else None,
                instead_share=most / count if most else None,
            )
        )  # fmt: skip
    return found
