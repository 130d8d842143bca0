"""How often an evaluation gave each class as an answer, compared with the labels.

Read from the metrics logged during training and from evaluation.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trm_core.diagnose.evidence import Evidence


@dataclass(frozen=True)
class Answered:
    """One evaluation. All but `step` are shares; see `trm_core.evaluation.answer_shares`."""

    step: int
    accuracy: float
    left_out: float
    in_excess: float
    top_answer: float
    top_label: float

    @property
    def mistakes(self) -> float:
        return 1.0 - self.accuracy

    @property
    def of_mistakes(self) -> float:
        """Share of the mistakes due to labels left out or to answers given too often, whichever is larger."""
        return min(max(self.left_out, self.in_excess) / max(self.mistakes, 1e-9), 1.0)


_LOGGED = ("accuracy", "labels_left_out", "answers_in_excess", "answer_top_share", "label_top_share")


def newest(evidence: Evidence, score: str) -> tuple[int, float]:
    """Step and value of the newest held-out score: logged during training, or that of the finished run. (0, NaN) if
    there is none.
    """
    logged = evidence.metrics[f"eval/{score}"].finite()
    last = (int(logged.steps[-1]), logged.last) if len(logged) else (0, math.nan)
    recorded = {} if evidence.run is None else evidence.run.evaluation
    step, value = recorded.get("step"), _first_score(recorded).get(score)
    if isinstance(step, int) and step > last[0] and isinstance(value, int | float) and 0 <= value <= 1:
        return step, float(value)
    return last


def held_out_rows(evidence: Evidence) -> int:
    """How many samples an evaluation covers; 0 if unknown."""
    rows = None if evidence.run is None else _first_score(evidence.run.evaluation).get("rows")
    return rows if isinstance(rows, int) and rows > 0 else evidence.evaluated_rows


def trained_alike(evidence: Evidence, accuracy: float) -> tuple[float, float]:
    """Lowest and highest accuracy that the training samples of the evaluated file can have, given `accuracy` over all
    training samples. They differ if several files are mixed, since any of them may be harder than the others.
    """
    share = evidence.trained_as_evaluated
    return (0.0, 1.0) if share is None else (max((accuracy - 1 + share) / share, 0.0), min(accuracy / share, 1.0))


def answered(evidence: Evidence) -> list[Answered]:
    """The evaluations that counted their answers, oldest first; the last may be that of the finished run."""
    at_step: dict[int, list[object]] = {}
    for series in (evidence.metrics[f"eval/{name}"] for name in _LOGGED):
        for step, value in zip(series.steps.tolist(), series.values.tolist(), strict=True):
            at_step.setdefault(step, []).append(value)
    found = [one for step in sorted(at_step) if (one := _shares(step, at_step[step])) is not None]
    final = None if evidence.run is None else _recorded(evidence.run.evaluation)
    if final is not None and (not found or final.step > found[-1].step):
        found.append(final)
    return found


def _first_score(evaluation: Mapping[str, Any]) -> Mapping[str, Any]:
    scores = evaluation.get("scores")
    return scores[0] if isinstance(scores, list) and scores and isinstance(scores[0], dict) else {}


def _recorded(evaluation: Mapping[str, Any]) -> Answered | None:
    """The evaluation of the first policy in evaluation.json, which is the one that training logs."""
    step, score = evaluation.get("step"), _first_score(evaluation)
    shares = score.get("answers")
    if not isinstance(step, int) or not isinstance(shares, dict):
        return None
    names = ("left_out", "in_excess", "top_answer", "top_label")
    return _shares(step, [score.get("accuracy"), *(shares.get(name) for name in names)])


def _shares(step: int, values: Sequence[object]) -> Answered | None:
    """None if a value is missing or is not a share."""
    numbers = [float(value) for value in values if isinstance(value, (int, float)) and 0 <= value <= 1]
    return Answered(step, *numbers) if len(numbers) == len(_LOGGED) == len(values) else None
