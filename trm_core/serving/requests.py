"""From the body of a request to samples, and everything that can be wrong with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from trm_core.errors import DataError
from trm_core.inference.samples import Sample, expected_shapes, samples_of
from trm_core.inference.trained import Trained

FIELDS = ("sketches", "children", "mask", "checksums", "parents")


@dataclass(frozen=True)
class Question:
    """A request that makes sense."""

    samples: list[Sample]
    probabilities: bool
    decisions: bool


def parse(body: bytes, trained: Trained, most_samples: int) -> Question:
    """{"samples": [{"sketches": [[..]], "children": [[[..]]], ...}], "probabilities": false, "decisions": false}.

    Raises DataError that names the sample and the field.
    """
    try:
        # Python's reader takes NaN and Infinity, which JSON has not.
        record = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the body is no JSON: {str(error)[:200]}") from None
    if not isinstance(record, dict):
        raise DataError('the body is no object: {"samples": [...]} is expected')
    unknown = set(record) - {"samples", "probabilities", "decisions"}
    if unknown:
        raise DataError(f"unknown field {min(unknown)[:80]!r}", hint="samples, probabilities, decisions")
    flags = {name: record.get(name, False) for name in ("probabilities", "decisions")}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise DataError(f"{name} is neither true nor false")
    samples = record.get("samples")
    if not isinstance(samples, list) or not samples:
        raise DataError("samples is no list of one or more objects")
    if len(samples) > most_samples:
        raise DataError(f"{len(samples)} samples, and at most {most_samples} are taken at once", hint="send them apart")
    return Question([_sample(number, one, trained) for number, one in enumerate(samples)], **flags)


def _sample(number: int, record: Any, trained: Trained) -> Sample:
    if not isinstance(record, dict):
        raise DataError(f"sample {number} is no object")
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


def _array(number: int, name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Shape and types are looked at before numpy sees the lists: it would take strings, and guess at ragged ones."""
    problem = _wrong(value, shape, bool if name == "mask" else (int, float))
    if problem is not None:
        raise DataError(f"sample {number}: {name}{problem}", hint=f"the shape is {list(shape)}")
    try:
        return np.array(value, dtype={"mask": np.bool_, "parents": np.int64}.get(name, np.float64))
    except (OverflowError, TypeError, ValueError) as error:
        raise DataError(f"sample {number}: {name}: {str(error)[:120]}") from None


def _wrong(value: Any, shape: tuple[int, ...], kind: Any) -> str | None:
    """What is wrong with nested lists, and where."""
    if not shape:
        # true and false are integers to Python
        right = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
        return None if right else f" holds {str(value)[:40]!r}"
    if not isinstance(value, list):
        return " is no list here"
    if len(value) != shape[0]:
        return f" has {len(value)} entries where {shape[0]} are expected"
    for place, inner in enumerate(value):
        problem = _wrong(inner, shape[1:], kind)
        if problem is not None:
            return f"[{place}]{problem}"
    return None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not allowed in JSON")
