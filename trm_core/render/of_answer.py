"""Convert an answer that was requested with its trace into what the drawings need."""

from __future__ import annotations

from trm_core.errors import UsageError
from trm_core.inference.samples import Answer, Sample
from trm_core.inference.trained import Trained
from trm_core.render.thinking import CapsuleStep, CapsuleThinking, PuzzleStep, PuzzleThinking


def thinking_of(trained: Trained, sample: Sample, answer: Answer) -> PuzzleThinking | CapsuleThinking:
    """The thinking behind an answer. Raises UsageError for a model that answers every capsule on its own."""
    if trained.puzzles is not None:
        return PuzzleThinking(trained.puzzles.manifest, sample.sketches, _puzzle_steps(answer))
    if len(answer.prediction) > 1:
        raise UsageError("this model gives an answer for every capsule: there is no single belief to draw")
    return CapsuleThinking(trained.model.data.num_capsules, _capsule_steps(answer), trained.class_names)


def _puzzle_steps(answer: Answer) -> list[PuzzleStep]:
    steps = []
    for decision in answer.decisions:
        assert decision.beliefs is not None, "asked for without its trace"
        beliefs = decision.beliefs
        steps.append(PuzzleStep(beliefs.argmax(-1), beliefs.max(-1), decision.halt_probability))
    return steps


def _capsule_steps(answer: Answer) -> list[CapsuleStep]:
    """A decision opens capsules for the next step; those that no decision opened were open from the start."""
    later = sum(len(decision.opened) for decision in answer.decisions)
    opened = answer.opened[: len(answer.opened) - later]
    steps = []
    for decision in answer.decisions:
        assert decision.beliefs is not None, "asked for without its trace"
        steps.append(CapsuleStep(decision.beliefs[0], opened, decision.halt_probability))
        opened = decision.opened
    return steps
