"""The test inputs of ARC tasks that are to be answered by votes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from trm_core.data.build.arc import GridPair
from trm_core.data.fields import IGNORE_LABEL
from trm_core.data.puzzles.arc_copies import SEPARATOR
from trm_core.data.puzzles.arc_tokens import PAD, crops
from trm_core.data.puzzles.layout import BLANK
from trm_core.data.puzzles.meaning import Meaning
from trm_core.data.puzzles.question_files import questions_of_file, questions_of_text
from trm_core.data.puzzles.questions import Question
from trm_core.data.puzzles.reader import is_puzzle_folder
from trm_core.errors import DataError, UsageError
from trm_core.inference.predictor import Predictor
from trm_core.inference.puzzle_source import require_question_file, tell_guesses
from trm_core.inference.sources import Asked, text_asked


@dataclass(frozen=True)
class ArcInput:
    """A test input of a task. number: which one of those that are asked of the task; where: what to call it."""

    task: str
    number: int
    pair: GridPair
    where: str


def arc_inputs(
    asked: Asked, predictor: Predictor, stdin: BinaryIO, log: Callable[[str], None] = lambda message: None
) -> list[ArcInput]:
    """The test inputs in a file or text. log: told of tasks that the model does not know. Raises DataError or
    UsageError.
    """
    meaning = _votable(predictor)
    name, questions = _questions(asked, meaning, stdin)
    found: list[ArcInput] = []
    counts: dict[str, int] = {}
    for row, question in enumerate(questions):
        where = f"{name}, puzzle {row}"
        task = _task_of(question, where)
        predictor.identifier_of(question, where)  # a name that was given has to be known
        pair = GridPair(_grid(question.tokens, where), None if question.labels is None else _answer(question, where))
        found.append(ArcInput(task, counts.get(task, 0), pair, where))
        counts[task] = counts.get(task, 0) + 1
    if not found:
        raise DataError(f"{name}: no puzzles in it")
    tell_guesses(name, 0, [task for task in counts if not predictor.copies_of(task, 1)], log)
    return found


def _votable(predictor: Predictor) -> Meaning:
    trained = predictor.trained
    if trained.puzzles is None or trained.puzzles.kind != "arc":
        what = trained.about.get("kind") or "capsules"
        raise UsageError(
            f"votes are for ARC tasks, and {trained.source} was trained on {what}", hint="leave --votes out"
        )
    if not trained.config.arch.puzzle_emb_ndim:
        raise UsageError(
            f"{trained.source} has no embeddings of tasks (arch.puzzle_emb_ndim=0), so it knows no copies of them",
            hint="leave --votes out",
        )
    if not predictor.knows_names:
        raise DataError(
            f"{trained.source} does not record the names of its puzzles, so copies of tasks cannot be told",
            hint="train on a folder with identifiers.json; trm eval RUN --submission FILE reads the names there",
        )
    return trained.puzzles


def _questions(asked: Asked, meaning: Meaning, stdin: BinaryIO) -> tuple[str, Iterator[Question]]:
    """What the questions come from, and the questions."""
    text = text_asked(asked, stdin)
    if text is not None:
        return text[1], questions_of_text(text[0], meaning, text[1])
    path = asked.paths[0]
    if is_puzzle_folder(path):
        raise UsageError(
            f"{path} holds copies of tasks, and votes are on tasks",
            hint=f"trm eval RUN --data {path} --submission FILE counts the votes of a folder",
        )
    require_question_file(path, asked.split)
    return str(path), questions_of_file(path, meaning)


def _task_of(question: Question, where: str) -> str:
    task = question.task if question.puzzle is None else question.puzzle
    if not isinstance(task, str) or SEPARATOR in task or task in ("", BLANK):
        what = "names no task" if task is None else f"is asked as {task!r:.60}, which is not the name of a task"
        raise DataError(
            f"{where}: {what}, so it has no copies that could vote",
            hint='name the task: {"00576224": {"test": [...]}}, or a file 00576224.json that holds the task',
        )
    return task


def _answer(question: Question, where: str) -> np.ndarray:
    assert question.labels is not None
    return _grid(np.where(question.labels == IGNORE_LABEL, PAD, question.labels), f"{where}, output")


def _grid(tokens: np.ndarray, where: str) -> np.ndarray:
    (grid,) = crops(tokens[None])
    if grid is None:
        raise DataError(f"{where}: no grid in the top left corner")
    return grid
