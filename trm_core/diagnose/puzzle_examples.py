"""A sample of a puzzle split, and what its tokens say about how questions, answers and splits belong together.

n examples of S cells, V tokens. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trm_core.data.fields import IGNORE_LABEL
from trm_core.data.puzzles.reader import PuzzleData
from trm_core.data.puzzles.survey import pairs, told_by_best

_MOST = 2000
_CELLS = 400_000
_LEAST_SHARE = 0.01  # of the cells: rarer tokens are not compared
_LEAST_SPREAD = 0.02  # of a token's share: where all puzzles have equally many, one more makes no different puzzle


@dataclass(frozen=True)
class Examples:
    """Examples of some groups: `groups` of them, the fraction `part` of all groups."""

    inputs: np.ndarray  # [n, S] int64
    labels: np.ndarray  # [n, S] int64, -100 where ignored
    groups: int
    part: float

    def __len__(self) -> int:
        return len(self.inputs)


def examples_of(data: PuzzleData, split: str) -> Examples:
    """The first example of each group (the others are copies of the same puzzle), or of as many groups as fit, spread
    evenly over the split; further examples follow where groups are few.
    """
    begin, firsts = 0, []
    for part in data.sets[split]:
        firsts.append(begin + part.puzzle_indices[part.group_indices[:-1]])
        begin += len(part.inputs)
    numbers = np.concatenate(firsts)
    most = min(_MOST, max(1, _CELLS // data.num_capsules))
    chosen = spread(numbers, min(most, len(numbers)))
    every = np.arange(data.rows[split])
    others = np.setdiff1d(spread(every, min(most, len(every))), chosen)
    found = data.read(split, np.concatenate([chosen, spread(others, min(most - len(chosen), len(others)))]))
    return Examples(found["sketches"], found["labels"], len(chosen), len(chosen) / max(len(numbers), 1))


def spread(numbers: np.ndarray, count: int) -> np.ndarray:
    """`count` of `numbers`, evenly spaced."""
    return numbers[np.linspace(0, max(len(numbers) - 1, 0), count).astype(np.int64)]


def told_at(examples: Examples, classes: int, offset: int) -> float:
    """Information, in nats, that the most telling token of the questions has about the answer `offset` cells later."""
    asked, said = examples.inputs, examples.labels
    if offset:
        asked, said = (asked[:, :-offset], said[:, offset:]) if offset > 0 else (asked[:, -offset:], said[:, :offset])
    counts = said != IGNORE_LABEL
    return told_by_best(pairs(asked[counts], said[counts], classes))


@dataclass(frozen=True)
class Meant:
    """How often the answer in a cell is the most frequent answer to that cell's question token, as learned from other
    examples.
    """

    train: float  # in training
    other: float  # in the held-out examples
    carried: float  # in the held-out examples, with the meanings learned from training
    error: float  # standard error of a difference

    @property
    def chance(self) -> float:
        """Differences between two of the shares up to this size may be chance."""
        return max(0.05, 4 * self.error)


def meant(train: Examples, other: Examples, classes: int) -> Meant:
    """Learn what tokens mean from every second example and test it on the others. On the examples it was learned from,
    even a meaning seen once would be right.
    """
    inside = [np.concatenate([hits(some, some, classes, half) for half in (0, 1)]) for some in (train, other)]
    carried = np.concatenate([hits(train, other, classes, half) for half in (0, 1)])
    error = sum(one.var() / max(some.groups, 1) for one, some in zip(inside, (train, other), strict=True)) ** 0.5
    return Meant(float(inside[0].mean()), float(inside[1].mean()), float(carried.mean()), float(error))


def hits(learned: Examples, asked: Examples, classes: int, half: int) -> np.ndarray:
    """[n]: for each example of `asked` with parity `half`, how often the answer in a cell is the most frequent answer
    to its question token among the examples of `learned` with the other parity.
    """
    known = learned.labels[1 - half :: 2] != IGNORE_LABEL
    table = pairs(learned.inputs[1 - half :: 2][known], learned.labels[1 - half :: 2][known], classes)
    meaning = np.where(table.any(1), table.argmax(1), -1)
    said = asked.labels[half::2]
    counts = said != IGNORE_LABEL
    right = (meaning[asked.inputs[half::2]] == said) & counts
    return np.asarray(right.sum(1) / np.maximum(counts.sum(1), 1))


def shares_apart(train: Examples, other: Examples, classes: int) -> tuple[float, int]:
    """The largest difference between `train` and `other` in a token's share of the question, in standard deviations of
    that share over the training puzzles, and the token.
    """
    ours, theirs = (token_shares(some.inputs, classes) for some in (train, other))
    usual = np.maximum(ours.std(0), _LEAST_SPREAD)
    there = np.maximum(ours.mean(0), theirs.mean(0)) >= _LEAST_SHARE
    moved = np.where(there, np.abs(theirs.mean(0) - ours.mean(0)) / usual, 0.0)
    token = int(moved.argmax())
    return float(moved[token]), token


def token_shares(inputs: np.ndarray, classes: int) -> np.ndarray:
    """[n, V]: for each example, the share of its cells that hold each token."""
    n, S = inputs.shape
    flat = (np.arange(n)[:, None] * classes + inputs).ravel()
    return np.bincount(flat, minlength=n * classes).reshape(n, classes) / S
