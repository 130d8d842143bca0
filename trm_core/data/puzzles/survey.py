"""Statistics of a split of puzzles: tokens, answers, duplicates, and how far answers depend on their questions.

One pass over some or all of its examples, which keeps 16 bytes of digests per example. Used by `trm inspect-dataset`
and `trm diagnose`. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from trm_core.data.fields import IGNORE_LABEL
from trm_core.data.puzzles.reader import PuzzleData

MOST_TOKENS_IN_PAIRS = 2048
_PIECE_ROWS = 4096
_HASH_SEED = 23
_LEAST_SHARE = 0.01  # share of the cells that a token must fill to be considered


@dataclass(frozen=True)
class Survey:
    """Of n examples of one split. V tokens."""

    examples: int
    inputs: np.ndarray  # [V] how often each token occurs in questions
    labels: np.ndarray  # [V] and in answers
    ignored: int  # labels to ignore
    unanswered: int  # examples whose labels are all to be ignored
    copied: int  # examples that ask nothing: every answer is in the question
    questions: np.ndarray  # [n] uint64 digest of inputs and identifier
    answered: np.ndarray  # [n] uint64 digest of inputs and labels
    told: float  # nats that the most telling question token reveals about the answer at its position
    told_apart: float  # and about the answer of another example at that position

    @property
    def repeated(self) -> int:
        """Examples whose question and answer occurred before, whatever their identifiers."""
        return self.examples - len(np.unique(self.answered))

    @property
    def contradicting(self) -> int:
        """Examples whose question occurred before, for the same puzzle, with another answer."""
        both = np.unique(np.stack([self.questions, self.answered]), axis=1)
        return both.shape[1] - len(np.unique(self.questions))


def survey(
    data: PuzzleData, split: str, rows: np.ndarray | None = None, on_rows: Callable[[int], None] = lambda done: None
) -> Survey:
    """Look at `rows` [n] of a split, or at all of it. Tokens have to be within the vocabulary (`require_labels`)."""
    if rows is None:
        rows = np.arange(data.rows[split])
    V = data.num_classes or 0
    inputs, labels = np.zeros(V, np.int64), np.zeros(V, np.int64)
    # Pairs of tokens fill a table of V x V, for which a large vocabulary has neither room nor enough examples.
    P = V if V <= MOST_TOKENS_IN_PAIRS else 0
    together, apart = np.zeros((P, P)), np.zeros((P, P))
    ignored = unanswered = copied = 0
    questions, answered = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    for begin in range(0, len(rows), _PIECE_ROWS):
        found = data.read(split, rows[begin : begin + _PIECE_ROWS])
        asked, said = found["sketches"], found["labels"]
        counts = said != IGNORE_LABEL
        inputs += np.bincount(asked.ravel(), minlength=V)
        labels += np.bincount(said[counts], minlength=V)
        ignored += int((~counts).sum())
        unanswered += int((~counts.any(1)).sum())
        copied += int((counts.any(1) & ((asked == said) | ~counts).all(1)).sum())
        other = np.roll(asked, len(asked) // 2, axis=0)  # far from the copies of the same puzzle
        if P:
            together += pairs(asked[counts], said[counts], P)
            apart += pairs(other[counts], said[counts], P)
        questions.append(digests([asked, found["puzzles"][:, None]]))
        answered.append(digests([asked, said]))
        on_rows(begin + len(asked))
    return Survey(
        len(rows), inputs, labels, ignored, unanswered, copied, np.concatenate(questions), np.concatenate(answered),
        told_by_best(together), told_by_best(apart),
    )  # fmt: skip


def pairs(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """[count, count]: how often each token of `first` [n] stands beside each of `second` [n]."""
    return np.bincount(first * count + second, minlength=count * count).reshape(count, count)


def told_by_best(table: np.ndarray) -> float:
    """How much the most telling token reveals about what stands beside it, in nats: the KL divergence of what is seen
    beside it from what is seen overall. Not the mean over all tokens, which would depend on how much is left blank.
    """
    total = table.sum()
    if not total:
        return 0.0
    overall, best = table.sum(0) / total, 0.0
    for row in table[table.sum(1) >= _LEAST_SHARE * total]:
        p = row / row.sum()
        there = p > 0
        best = max(best, float((p[there] * np.log(p[there] / overall[there])).sum()))
    return best


def digests(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """[n] uint64: equal for rows of whole numbers that are equal in all arrays [n, ..]."""
    total = np.uint64(0)
    for number, array in enumerate(arrays):
        factors = np.random.default_rng([_HASH_SEED, number]).integers(0, 2**64, array.shape[1], np.uint64)
        words = array.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = ((words ^ (words >> np.uint64(29))) * (factors | np.uint64(1))).sum(1, dtype=np.uint64)
        total = (total ^ (total >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9) + mixed
    return np.asarray(total)
