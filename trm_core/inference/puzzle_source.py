"""Puzzles to be answered, from a folder of them or a file or text as people have them; and the record of an answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from trm_core.data.fields import IGNORE_LABEL
from trm_core.data.puzzles.answers import readable, right, valid
from trm_core.data.puzzles.identifiers import numbered_as_trained
from trm_core.data.puzzles.meaning import Meaning
from trm_core.data.puzzles.question_files import questions_of_file, questions_of_text
from trm_core.data.puzzles.questions import Question
from trm_core.data.puzzles.reader import PuzzleData, is_puzzle_folder, open_puzzles
from trm_core.errors import DataError, UsageError
from trm_core.inference.predictor import Predictor
from trm_core.inference.samples import Answer, Sample
from trm_core.inference.source import Source, identity_of_file

Log = Callable[[str], None]

_BLOCK = 256  # puzzles read at once
_NAMED = 3  # tasks named in a message


def puzzle_source(path: Path, predictor: Predictor, split: str | None, log: Log = lambda message: None) -> Source:
    """A folder of puzzles (one `split` of it: test, or train if there is no other), or a file that `question_files`
    reads. log: told of tasks that the model does not know. Raises DataError or UsageError.
    """
    meaning = _meaning(predictor)
    if is_puzzle_folder(path):
        return _folder(open_puzzles(path), predictor, split)
    require_question_file(path, split)
    return _asked(str(path), lambda: questions_of_file(path, meaning), identity_of_file(path), predictor, log)


def require_question_file(path: Path, split: str | None) -> None:
    """Raise DataError or UsageError unless this is a file that may hold puzzles."""
    if path.is_dir():
        raise DataError(f"{path}: is not a folder of puzzles", hint="give such a folder, or a file of puzzles")
    if split is not None:
        raise UsageError(f"{path} has no splits", hint="leave --split out")
    if not path.is_file():
        raise DataError(f"{path}: no such file", hint="a file of puzzles, a folder of them, or - for stdin")


def puzzle_text_source(text: str, name: str, predictor: Predictor, log: Log = lambda message: None) -> Source:
    """Puzzles from a text that is called `name` in messages. Raises DataError."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    identity: dict[str, Any] = {"data": name, "split": None, "content_hash": digest}
    return _asked(name, lambda: questions_of_text(text, _meaning(predictor), name), identity, predictor, log)


def puzzle_record(sample: Sample, answer: Answer, meaning: Meaning, probabilities: bool = False) -> dict[str, Any]:
    """For JSON: the answer as people read it and, where that can be told, whether it is `valid` and `right`."""
    found, tokens = answer.as_record(probabilities), np.asarray(answer.prediction)
    told: dict[str, Any] = {"answer": readable(tokens, meaning)}
    keeps = valid(sample.sketches, tokens, meaning)
    if keeps is not None:
        told["valid"] = keeps
    if sample.labels is not None:
        told["right"] = right(sample.labels, tokens, meaning)
    return told | {name: value for name, value in found.items() if name not in ("label", "opened", "spent")}


def tell_guesses(name: str, nameless: int, strangers: list[str], log: Log) -> None:
    """Say which ARC tasks have no identifier. A task's rule is learned with its identifier: without one the model does
    not see what is asked.
    """
    reasons = [f"{nameless} puzzles name no task"] if nameless else []
    if strangers:
        more = f" and {len(strangers) - _NAMED} more" if len(strangers) > _NAMED else ""
        shown = ", ".join(one[:40] for one in strangers[:_NAMED])
        reasons.append(f"the model was not trained on {shown}{more}")
    for reason in reasons:
        log(f"{name}: {reason}; answers with the blank identifier are guesses")


def _meaning(predictor: Predictor) -> Meaning:
    assert predictor.trained.puzzles is not None
    return predictor.trained.puzzles


def _asked(
    name: str, questions: Callable[[], Iterator[Question]], identity: dict[str, Any], predictor: Predictor, log: Log
) -> Source:
    def start(first: int) -> Iterator[Sample]:
        for number, question in enumerate(islice(questions(), first, None), start=first):
            yield predictor.question_sample(question, f"{name}, puzzle {number}")

    rows, nameless, strangers = 0, 0, dict[str, None]()
    for question in questions():  # errors are found before anything is answered
        if predictor.identifier_of(question, f"{name}, puzzle {rows}") is None:
            nameless += question.task is None
            strangers |= {} if question.task is None else {question.task: None}
        rows += 1
    if not rows:
        raise DataError(f"{name}: no puzzles in it")
    if _meaning(predictor).kind == "arc" and predictor.trained.config.arch.puzzle_emb_ndim:
        tell_guesses(name, nameless, list(strangers), log)
    return Source(name, rows, start, identity, _recorder(predictor), bulk=False)


def _folder(data: PuzzleData, predictor: Predictor, split: str | None) -> Source:
    shape = predictor.trained.model.data
    for name, ours, theirs in (
        ("tokens", shape.num_capsules, data.num_capsules),
        ("symbols", shape.vocab_size, data.num_classes),
    ):
        if ours != theirs:
            raise DataError(f"{data.path}: its puzzles have {theirs} {name}, those of the model {ours}")
    if predictor.trained.config.arch.puzzle_emb_ndim:
        data = numbered_as_trained(data, shape.num_puzzles, predictor.trained.identifiers)
    split = split or next((name for name in ("test", "train") if data.rows.get(name)), "test")
    if not data.rows.get(split):
        raise UsageError(f"{data.path} has no split '{split}'", hint=f"it has: {', '.join(data.rows)}")

    def start(first: int) -> Iterator[Sample]:
        for begin in range(first, data.rows[split], _BLOCK):
            block = data.read(split, slice(begin, min(begin + _BLOCK, data.rows[split])))
            for row, (tokens, labels, puzzle) in enumerate(
                zip(block["sketches"], block["labels"], block["puzzles"].tolist(), strict=True), start=begin
            ):
                known = labels if (labels != IGNORE_LABEL).any() else None
                yield predictor.question_sample(Question(tokens, known, puzzle), f"{data.path}, {split} row {row}")

    identity = {"data": str(data.path), "split": split, "content_hash": data.manifest["content_hash"]}
    return Source(str(data.path), data.rows[split], start, identity, _recorder(predictor))


def _recorder(predictor: Predictor) -> Callable[[Sample, Answer, bool], dict[str, Any]]:
    meaning = _meaning(predictor)
    return lambda sample, answer, probabilities: puzzle_record(sample, answer, meaning, probabilities)
