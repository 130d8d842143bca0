"""What goes into a prediction and what comes out of it, with checks of what a caller passes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm_core.data.fields import FIELDS
from trm_core.errors import DataError
from trm_core.inference.token_fields import checked_tokens
from trm_core.inference.trained import Trained
from trm_core.model.data_shape import DataShape

Children = Callable[[int], NDArray[Any]]


@dataclass(frozen=True)
class Sample:
    """One sample as the model sees it: k capsules, m children, widths D and R.

    `children`: called with the index of a capsule only when that is opened; returns its [m, D]. None: nothing can be
    opened.
    """

    sketches: NDArray[Any]  # [k, D] float32; puzzles: [k] int64 tokens
    children: Children | None = None
    mask: NDArray[np.bool_] | None = None  # [k]; false: padding
    checksums: NDArray[np.float32] | None = None  # [k, R]
    parents: NDArray[np.int64] | None = None  # [k]; -1: a root
    puzzle: int = 0  # identifier of a puzzle
    labels: NDArray[np.int64] | None = None  # the answer if known ([k], or [1] for one class); not shown to the model
    id: str | None = None  # what it is called in the file of answers
    excerpt: str = ""  # by which a human recognises it


@dataclass(frozen=True)
class Decision:
    """What the policy did after one reasoning step, and why."""

    step: int  # from 1
    action: str  # continue, halt, expand
    opened: tuple[int, ...]  # capsules
    confidence: float  # largest probability of the answer after this step (mean over answers)
    halt_probability: float  # that the answer is right, according to the halt output
    q_values: tuple[float, ...]  # of continue, halt and, if there is one, expand
    cycles: int  # high-level cycles
    beliefs: NDArray[np.float32] | None = None  # [P, V] probabilities after this step, if requested


@dataclass(frozen=True)
class Total:
    """What all beginnings of a sample cost. Detail that several of them opened is bought once."""

    steps: int
    opened: tuple[int, ...]
    spent: float


@dataclass(frozen=True)
class Answer:
    """The model's answer to one sample, and what it cost."""

    prediction: tuple[int, ...]  # a class per answer: one, or k
    label: tuple[str, ...]  # their names; the numbers themselves where classes have none
    confidence: float
    probabilities: NDArray[np.float32]  # [P, V]
    steps: int
    opened: tuple[int, ...]  # capsules, in the order of opening
    spent: float  # price units
    decisions: tuple[Decision, ...]
    halt_logit: float = 0.0  # of the last step
    restart: int = 0  # which of several beginnings led to it; 0: the model's own
    in_all: Total | None = None  # cost of all beginnings, if there were several

    @property
    def cost(self) -> Total:
        """What the answer cost in all."""
        return self.in_all or Total(self.steps, self.opened, self.spent)

    @property
    def halt_probability(self) -> float:
        """The probability that the answer is right, according to the halt output."""
        return self.decisions[-1].halt_probability

    def as_record(self, probabilities: bool = False) -> dict[str, Any]:
        """For JSON. A single answer stands alone, several form a list."""
        one = len(self.prediction) == 1
        record: dict[str, Any] = {
            "prediction": self.prediction[0] if one else list(self.prediction),
            "label": self.label[0] if one else list(self.label),
            "confidence": round(self.confidence, 6),
            "halt_probability": round(self.halt_probability, 6),
            "steps": self.steps,
            "opened": list(self.opened),
            "spent": round(self.spent, 6),
            "decisions": [
                {
                    "step": d.step,
                    "action": d.action,
                    "opened": list(d.opened),
                    "confidence": round(d.confidence, 6),
                    "halt_probability": round(d.halt_probability, 6),
                    "q_values": [round(q, 6) for q in d.q_values],
                    "cycles": d.cycles,
                }
                for d in self.decisions
            ],
        }
        if self.in_all is not None:
            record |= {"restart": self.restart, "steps_in_all": self.in_all.steps}
            if self.in_all.opened:
                record |= {"opened_in_all": list(self.in_all.opened), "spent_in_all": round(self.in_all.spent, 6)}
        if probabilities:
            shares = self.probabilities.astype(float).round(6).tolist()
            record["probabilities"] = shares[0] if one else shares
        return record


def samples_of(fields: Mapping[str, Any], trained: Trained, first: int = 0) -> Iterator[Sample]:
    """The rows of arrays by name: sketches [n, k, D] and, as far as the model uses them, children [n, k, m, D] (or a
    callable (row, capsule) -> [m, D]), mask [n, k], checksums [n, k, R], parents [n, k]. For puzzles: tokens [n, k]
    and, where they have identifiers, puzzles [n].

    Raises DataError that names the array, or the row (counted from `first`), and what was expected.
    """
    shape = trained.model.data
    if shape.tokens:
        tokens, puzzles = checked_tokens(fields, trained, first)
        yield from (Sample(row, puzzle=int(number)) for row, number in zip(tokens, puzzles, strict=True))
        return
    unknown = set(fields) - set(FIELDS)
    if unknown:
        raise DataError(f"there is no array {min(unknown)[:80]!r} of capsules", hint=f"there are {', '.join(FIELDS)}")
    if fields.get("sketches") is None:
        raise DataError("no sketches", hint=f"give an array [n, {shape.num_capsules}, {shape.dim}]")
    arrays = {name: value for name, value in fields.items() if value is not None and not callable(value)}
    given = fields.get("children")
    n = len(arrays["sketches"])
    checked = {name: checked_array(name, arrays[name], shape, n) for name in expected_shapes(shape) if name in arrays}
    if shape.has_parents and "parents" not in checked:
        raise DataError("no parents, but the model has hierarchical attention", hint="give an array [n, k]")
    if trained.can_expand and trained.dqn.expansion_selector == "checksum" and "checksums" not in checked:
        raise DataError("no checksums, but the model chooses capsules by them", hint="give an array [n, k, R]")
    if "mask" in checked and not trained.masked and not checked["mask"].all():
        raise DataError("mask: there is padding, but the model was trained without", hint="fill all k capsules")
    for row in range(n):
        children: Children | None = None
        if shape.num_children and given is not None:
            source = checked.get("children", given)
            children = _of_row(source, row if "children" in checked else first + row)
        rest = {name: values[row] for name, values in checked.items() if name != "children"}
        yield Sample(children=children, **rest)


def _of_row(source: Any, row: int) -> Children:
    if callable(source):
        return lambda capsule: source(row, capsule)
    return lambda capsule: source[row, capsule]


def expected_shapes(shape: DataShape) -> dict[str, tuple[int, ...]]:
    """Shapes of one sample's arrays by name, without those that the model does not use."""
    k = shape.num_capsules
    found: dict[str, tuple[int, ...]] = {"sketches": (k, shape.dim), "mask": (k,)}
    if shape.num_children:
        found["children"] = (k, shape.num_children, shape.dim)
    if shape.checksum_dim:
        found["checksums"] = (k, shape.checksum_dim)
    if shape.has_parents:
        found["parents"] = (k,)
    return found


def checked_array(name: str, values: Any, shape: DataShape, n: int) -> NDArray[Any]:
    """The array in the type that the model takes; DataError if shape, type or values are wrong."""
    expected = (n, *expected_shapes(shape)[name])
    array = np.asarray(values)
    if array.shape != expected:
        raise DataError(f"{name} have shape {list(array.shape)}, the model takes {list(expected)}")
    wanted = {"mask": "biu", "parents": "iu"}.get(name, "fiu")
    if array.dtype.kind not in wanted:
        raise DataError(f"{name} are {array.dtype}, expected {'bool' if name == 'mask' else 'numbers'}")
    if name == "mask":
        if not np.isin(array, (0, 1)).all():
            raise DataError("mask: a number is neither 0 nor 1")
        array = array.astype(bool)
        if not array.any(1).all():
            raise DataError(f"mask: row {int((~array.any(1)).argmax())} is all padding")
        return array
    if name == "parents":
        if ((array < -1) | (array >= shape.num_capsules)).any():
            raise DataError(f"parents: an index is not in -1..{shape.num_capsules - 1}")
        return array.astype(np.int64)
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    bad = ~np.isfinite(array).reshape(n, -1).all(1)
    if bad.any():
        raise DataError(f"{name}: row {int(bad.argmax())} holds NaN or infinity")
    return array


def checked_detail(values: Any, capsule: int, shape: DataShape) -> NDArray[np.float32]:
    """The detail [m, D] that a callback gave for an opened capsule, checked. Raises DataError."""
    expected = (shape.num_children, shape.dim)
    try:
        array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"children of capsule {capsule} are not numbers: {error}") from error
    if array.shape != expected:
        raise DataError(
            f"children of capsule {capsule} have shape {list(array.shape)}, the model takes {list(expected)}"
        )
    if not np.isfinite(array).all():
        raise DataError(f"children of capsule {capsule} hold NaN or infinity")
    return array


def names_of(prediction: Sequence[int], class_names: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the classes, or their numbers as texts where there are no names."""
    if class_names is None:
        return tuple(str(number) for number in prediction)
    return tuple(class_names[number] for number in prediction)
