"""ARC tasks answered as an evaluation answers them: every copy of a task that the model knows has a vote."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from trm_core.data.build.arc import GridPair
from trm_core.data.build.records import digest_array
from trm_core.data.puzzles.arc_held_out import HeldOutTask
from trm_core.data.puzzles.arc_known_copies import KnownCopy
from trm_core.data.puzzles.arc_tokens import lay
from trm_core.data.puzzles.questions import Question
from trm_core.evaluation.arc_voting import Candidate, Votes, VotingResult, attempts_of
from trm_core.inference.arc_inputs import ArcInput
from trm_core.inference.predictor import Predictor
from trm_core.inference.samples import Answer, Sample
from trm_core.inference.scoring import Settings

VOTER = "never"  # the policy whose answers vote unless another is asked for, as in an evaluation

_Key = tuple[str, int]  # a task, and the digest of a test input


@dataclass(frozen=True)
class Voted:
    """What was voted on a test input: the best grids, the number of copies asked, and of those without a grid."""

    input: ArcInput
    best: list[Candidate]
    copies: int
    illegal: int

    def right(self) -> list[bool]:
        """Of each of the best grids, whether it is the solution; empty where that is not known."""
        known = self.input.pair.output
        return [] if known is None else [np.array_equal(one.grid, known) for one in self.best]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        told = {
            "task": self.input.task,
            "test": self.input.number,
            **attempts_of(self.best),
            "votes": [one.votes for one in self.best],
            "halt_probability": [round(one.halt_probability, 6) for one in self.best],
            "copies": self.copies,
            "illegal": self.illegal,
        }
        return told if self.input.pair.output is None else told | {"right": self.right()}


def vote_on(
    predictor: Predictor,
    inputs: Sequence[ArcInput],
    most: int,
    settings: Settings,
    votes: Votes,
    on_row: Callable[[], None] = lambda: None,
) -> Iterator[Voted]:
    """Ask every test input as `most` copies of its task show it, at most, and count them in `votes`. A task that the
    model does not know is asked once, with the blank identifier. An input that comes again gets the answer that it got.
    on_row: told of every answer; what it raises stops.
    """
    drawn: deque[tuple[list[KnownCopy], list[np.ndarray]]] = deque()

    def samples() -> Iterator[Sample]:
        for one in _different(inputs):
            copies = _asked_as(predictor, one.task, most)
            shown = [lay(known.copy.apply(one.pair.input)).reshape(-1) for known in copies]
            drawn.append((copies, shown))
            for known, tokens in zip(copies, shown, strict=True):
                question = Question(tokens.astype(np.int64), puzzle=known.number)
                yield predictor.question_sample(question, one.where)

    policy = predictor.policy(settings.policy or VOTER, settings.price, settings.confidence)
    answers = predictor.stream(samples(), policy, settings.batch)
    voted: dict[_Key, Voted] = {}
    for one in inputs:
        if (known_as := _key(one)) in voted:
            yield replace(voted[known_as], input=one)
            continue
        # Only what is counted is kept: the probabilities of a thousand copies would be tens of megabytes.
        predictions, halt = [], []
        for answer in answers:
            on_row()
            predictions.append(np.array(answer.prediction, np.uint8))
            halt.append(_halt_probability(answer))
            if len(predictions) == len(drawn[0][0]):
                break
        copies, shown = drawn.popleft()
        before = votes.illegal
        votes.add([known.name for known in copies], np.stack(shown), np.stack(predictions), np.array(halt))
        voted[known_as] = Voted(one, votes.best(one.task, one.pair.input), len(copies), votes.illegal - before)
        yield voted[known_as]


def rows_of(predictor: Predictor, inputs: Sequence[ArcInput], most: int) -> int:
    """How many rows the model has to think about for that."""
    copies = {task: len(_asked_as(predictor, task, most)) for task in {one.task for one in inputs}}
    return sum(copies[one.task] for one in _different(inputs))


def result_of(votes: Votes, inputs: Sequence[ArcInput]) -> VotingResult:
    """The outcome of all votes, as of an evaluation of these test inputs."""
    tasks: dict[str, list[GridPair]] = {}
    for one in inputs:
        tasks.setdefault(one.task, []).append(one.pair)
    return votes.result([HeldOutTask(name, pairs) for name, pairs in tasks.items()])


def _different(inputs: Sequence[ArcInput]) -> list[ArcInput]:
    """Each test input of a task once, where it first comes."""
    first: dict[_Key, ArcInput] = {}
    for one in inputs:
        first.setdefault(_key(one), one)
    return list(first.values())


def _key(one: ArcInput) -> _Key:
    return one.task, digest_array(one.pair.input)


def _asked_as(predictor: Predictor, task: str, most: int) -> list[KnownCopy]:
    assert predictor.trained.puzzles is not None
    return predictor.copies_of(task, most) or [KnownCopy(task, predictor.trained.puzzles.blank)]


def _halt_probability(answer: Answer) -> float:
    """In double precision, as an evaluation has it."""
    return float(torch.tensor(answer.halt_logit, dtype=torch.float64).sigmoid())
