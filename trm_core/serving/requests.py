"""Turns the body of a request into samples, and catches everything that can be wrong with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from trm_core.data.puzzles.questions import Question as PuzzleQuestion
from trm_core.errors import DataError
from trm_core.inference.predictor import Predictor
from trm_core.inference.samples import Sample, expected_shapes, samples_of
from trm_core.inference.trained import Trained

FIELDS = ("sketches", "children", "mask", "checksums", "parents")
PUZZLE_FIELDS = ("tokens", "puzzle")


@dataclass(frozen=True)
class Question:
    """A valid request."""

    samples: list[Sample]
    probabilities: bool
    decisions: bool


def parse(body: bytes, predictor: Predictor, most_samples: int) -> Question:
    """{"samples": [{"sketches": [[..]], "children": [[[..]]], ...}], "probabilities": false, "decisions": false}, or
    with "inputs": ["a text", ...] instead of "samples", and "kind" where the training data mixed several. For puzzles:
    {"samples": [{"tokens": [..], "puzzle": 3}]}, with the number or name of its identifier, or "inputs" as people write
    them (see `question_of`).

    Raises DataError that names the sample and the field.
    """
    try:
        # Python's parser accepts NaN and Infinity, which JSON does not have.
        record = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the body is not JSON: {str(error)[:200]}") from None
    if not isinstance(record, dict):
        raise DataError('the body is not an object: {"samples": [...]} or {"inputs": [...]} is expected')
    unknown = set(record) - {"samples", "inputs", "kind", "probabilities", "decisions"}
    if unknown:
        raise DataError(f"unknown field {min(unknown)[:80]!r}", hint="samples or inputs, probabilities, decisions")
    if ("samples" in record) == ("inputs" in record):
        raise DataError("samples is not a list of one or more objects", hint="give either samples or inputs")
    form = "samples" if "samples" in record else "inputs"
    if form == "samples" and "kind" in record:
        raise DataError("kind is for raw samples only", hint="give it with inputs, or leave it out")
    flags = {name: record.get(name, False) for name in ("probabilities", "decisions")}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise DataError(f"{name} is neither true nor false")
    given = record[form]
    if not isinstance(given, list) or not given:
        raise DataError(f"{form} is not a list of one or more {'objects' if form == 'samples' else 'raw samples'}")
    if len(given) > most_samples:
        raise DataError(
            f"{len(given)} samples, but at most {most_samples} are accepted at once", hint="send several requests"
        )
    if form == "inputs":
        return Question(_encoded(given, record.get("kind"), predictor), **flags)
    if predictor.trained.puzzles is None:
        return Question([_sample(number, one, predictor.trained) for number, one in enumerate(given)], **flags)
    return Question([_puzzle(number, one, predictor) for number, one in enumerate(given)], **flags)


def _encoded(inputs: list[Any], kind: Any, predictor: Predictor) -> list[Sample]:
    if kind is not None and not isinstance(kind, str):
        raise DataError("kind is not a text")
    if predictor.trained.puzzles is not None:
        return list(predictor.encoded(inputs))
    encoder = predictor.encoder
    name = kind or encoder.kinds[0]
    if name in ("images", "digits"):
        whole = encoder.takes_whole_pixels(name)
        inputs = [_picture(number, value, whole) for number, value in enumerate(inputs)]
    return list(samples_of(encoder.encode(inputs, kind), predictor.trained))


def _picture(number: int, value: Any, whole: bool) -> np.ndarray:
    """Numbers only: a text would name a file on the server. Whether they are integers is decided by the training data,
    because JSON may spell 1.0 as 1.
    """
    try:
        array = np.array(value) if isinstance(value, list) else None
    except (ValueError, OverflowError):  # rows of different lengths, or numbers of hundreds of digits
        array = None
    if array is None or array.dtype.kind not in "if":
        raise DataError(f"sample {number}: expected a list of rows of numbers")
    if not whole:
        return array.astype(np.float64)
    if array.dtype.kind == "i" and array.size and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    return array


def _sample(number: int, record: Any, trained: Trained) -> Sample:
    if not isinstance(record, dict):
        raise DataError(f"sample {number} is not an object")
    unknown = set(record) - set(FIELDS)
    if unknown:
        raise DataError(f"sample {number}: unknown field {min(unknown)[:80]!r}", hint=", ".join(FIELDS))
    expected = expected_shapes(trained.model.data)
    fields = {}
    for name, value in record.items():
        if name in expected and value is not None:
            fields[name] = _array(number, name, value, expected[name])[None]
    try:
        return next(samples_of(fields, trained))
    except DataError as error:
        raise DataError(f"sample {number}: {error.message}", hint=error.hint) from None


def _puzzle(number: int, record: Any, predictor: Predictor) -> Sample:
    if not isinstance(record, dict):
        raise DataError(f"sample {number} is not an object")
    unknown = set(record) - set(PUZZLE_FIELDS)
    if unknown or "tokens" not in record:
        what = f"unknown field {min(unknown)[:80]!r}" if unknown else "no tokens"
        raise DataError(f"sample {number}: {what}", hint=", ".join(PUZZLE_FIELDS))
    tokens = _whole(number, "tokens", record["tokens"], (predictor.trained.model.data.num_capsules,))
    puzzle = record.get("puzzle")
    if puzzle is not None and not isinstance(puzzle, str):
        puzzle = int(_whole(number, "puzzle", puzzle, ()))
    return predictor.question_sample(PuzzleQuestion(tokens, puzzle=puzzle), f"sample {number}")


def _whole(number: int, name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    problem = _wrong(value, shape, int)
    if problem is not None:
        raise DataError(f"sample {number}: {name}{problem}", hint=f"whole numbers of shape {list(shape)}")
    try:
        return np.array(value, dtype=np.int64)
    except OverflowError as error:
        raise DataError(f"sample {number}: {name}: {str(error)[:120]}") from None


def _array(number: int, name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Shape and types are checked before numpy sees the lists: it would accept strings, and guess at ragged lists."""
    problem = _wrong(value, shape, bool if name == "mask" else (int, float))
    if problem is not None:
        raise DataError(f"sample {number}: {name}{problem}", hint=f"the shape is {list(shape)}")
    try:
        return np.array(value, dtype={"mask": np.bool_, "parents": np.int64}.get(name, np.float64))
    except (OverflowError, TypeError, ValueError) as error:
        raise DataError(f"sample {number}: {name}: {str(error)[:120]}") from None


def _wrong(value: Any, shape: tuple[int, ...], kind: Any) -> str | None:
    """What is wrong with nested lists, and where; None if nothing is."""
    if not shape:
        # true and false are integers in Python
        right = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
        return None if right else f" holds {str(value)[:40]!r}"
    if not isinstance(value, list):
        return " is not a list here"
    if len(value) != shape[0]:
        return f" has {len(value)} entries where {shape[0]} are expected"
    for place, inner in enumerate(value):
        problem = _wrong(inner, shape[1:], kind)
        if problem is not None:
            return f"[{place}]{problem}"
    return None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not allowed in JSON")
