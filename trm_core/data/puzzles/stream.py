"""Batches of training puzzles: endless, shuffled, resumable to the row.

An epoch visits every group (an original puzzle and its copies) once, in a new order; it draws one puzzle of the group
at random and takes all of that puzzle's examples, again in a new order. This is the sampling of the public TRM and HRM
code, except that a puzzle whose examples do not fit into a batch continues in the next one. Every draw is a function of
(seed, epoch, group).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trm_core.data.batch import CapsuleBatch
from trm_core.data.order import key_of, shuffled, uniform
from trm_core.data.puzzles.reader import PuzzleData, require_mergeable
from trm_core.errors import CheckpointError, DataError

_FIELDS = ("sketches", "labels", "puzzles")


@dataclass(frozen=True)
class _Epoch:
    """The order of one epoch: one puzzle from each of G groups."""

    number: int
    groups: np.ndarray  # [G] groups in visiting order
    first: np.ndarray  # [G] first example of the puzzle that was drawn
    ends: np.ndarray  # [G] rows of the epoch up to and including this puzzle

    @property
    def rows(self) -> int:
        return int(self.ends[-1])


class PuzzleStream:
    """Endless shuffled rows of one or several folders, whose groups are mixed as if they were one folder's.

    Several processes share the one order: each takes its own part of every `take`. Raises ConfigError where folders
    cannot be merged, DataError where one lacks the split.
    """

    def __init__(self, folders: Sequence[PuzzleData], split: str = "train", *, seed: int) -> None:
        require_mergeable(folders)
        self._folders, self._split, self._seed = list(folders), split, seed
        sizes, first, groups, begin = [], [], [], 0
        for folder in folders:
            if not folder.rows.get(split):
                raise DataError(f"{folder.path}: has no {split} split", hint=f"it has {', '.join(folder.rows)}")
            for part in folder.sets[split]:
                sizes.append(np.diff(part.puzzle_indices))
                first.append(part.puzzle_indices[:-1] + begin)
                groups.append(np.diff(part.group_indices))
                begin += len(part.inputs)
        self._size, self._first = np.concatenate(sizes), np.concatenate(first)  # of each puzzle
        self._copies = np.concatenate(groups)  # puzzles of each group
        self._first_puzzle = np.cumsum(self._copies) - self._copies
        self._bounds = np.cumsum([folder.rows[split] for folder in folders])
        self._epoch = self._order(0)
        self._offset = 0  # rows of this epoch given to all processes so far

    @property
    def epoch(self) -> float:
        """Epochs done, in visits of all groups."""
        return self._epoch.number + self._offset / self._epoch.rows

    @property
    def rows_per_epoch(self) -> int:
        """Rows of the current epoch."""
        return self._epoch.rows

    def take(self, n: int, before: int = 0, after: int = 0) -> CapsuleBatch:
        """The next n rows (n >= 0) out of the before + n + after that all processes take together; the rows of lower
        ranks come before ours.
        """
        rows = self._next(before + n + after)[before : before + n]
        parts = {
            "sketches": np.empty((n, self._folders[0].num_capsules), np.int64),
            "labels": np.empty((n, self._folders[0].num_capsules), np.int64),
            "puzzles": np.empty(n, np.int64),
        }
        owner = np.searchsorted(self._bounds, rows, side="right")
        for number, folder in enumerate(self._folders):
            here = np.flatnonzero(owner == number)
            if len(here):
                start = self._bounds[number] - folder.rows[self._split]
                found = folder.read(self._split, rows[here] - start)
                for name in _FIELDS:
                    parts[name][here] = found[name]
        return batch_of_puzzles(parts, rows)

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain numbers."""
        return {
            "seed": self._seed,
            "epoch": self._epoch.number,
            "offset": self._offset,
            "sources": self._fingerprints(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken. Raises CheckpointError if seed or folders differ, because then
        the position means nothing.
        """
        for key, mine in (("seed", self._seed), ("sources", self._fingerprints())):
            if state[key] != mine:
                raise CheckpointError(
                    f"data position: {key} was {state[key]} when it was saved and is {mine} now",
                    hint="resume with the same data and training.seed",
                )
        epoch, offset = int(state["epoch"]), int(state["offset"])
        order = self._order(max(epoch, 0))
        if epoch < 0 or not 0 <= offset <= order.rows:
            raise CheckpointError(f"data position: epoch {epoch}, offset {offset} is not a position")
        self._epoch, self._offset = order, offset

    def close(self) -> None:
        """There is nothing to close."""

    def _fingerprints(self) -> list[Any]:
        return [folder.manifest["content_hash"] for folder in self._folders]

    def _order(self, epoch: int) -> _Epoch:
        groups = shuffled(key_of(self._seed, 11, epoch), len(self._copies))
        draws = uniform(key_of(self._seed, 12, epoch), groups)
        puzzles = self._first_puzzle[groups] + (draws * self._copies[groups]).astype(np.int64)
        return _Epoch(epoch, groups, self._first[puzzles], np.cumsum(self._size[puzzles]))

    def _next(self, count: int) -> np.ndarray:
        """[count] numbers of the next examples, over all folders."""
        parts = [np.zeros(0, np.int64)]
        while count:
            if self._offset >= self._epoch.rows:
                self._offset -= self._epoch.rows
                self._epoch = self._order(self._epoch.number + 1)
                continue
            stop = min(self._offset + count, self._epoch.rows)
            parts.append(self._examples(self._offset, stop))
            count -= stop - self._offset
            self._offset = stop
        return np.concatenate(parts)

    def _examples(self, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop - 1 of the current epoch."""
        epoch = self._epoch
        places = np.arange(start, stop)
        which = np.searchsorted(epoch.ends, places, side="right")
        begins = np.where(which > 0, epoch.ends[which - 1], 0)
        if len(np.unique(which)) == len(which) and bool((epoch.ends[which] - begins == 1).all()):
            return epoch.first[which]  # puzzles of one example each, as Sudokus and mazes are
        found = np.empty(len(places), np.int64)
        for visit in np.unique(which):
            here = which == visit
            begin = int(epoch.ends[visit - 1]) if visit else 0
            order = shuffled(
                key_of(self._seed, 13, epoch.number, int(epoch.groups[visit])), int(epoch.ends[visit]) - begin
            )
            found[here] = epoch.first[visit] + order[places[here] - begin]
        return found


def batch_of_puzzles(arrays: dict[str, np.ndarray], rows: np.ndarray) -> CapsuleBatch:
    """A batch from what `PuzzleData.read` gave for these rows."""
    return CapsuleBatch(
        sketches=torch.from_numpy(arrays["sketches"]),
        children=None,
        checksums=None,
        labels=torch.from_numpy(arrays["labels"]),
        parents=None,
        mask=None,
        modality=None,
        rows=torch.from_numpy(np.ascontiguousarray(rows)),
        puzzles=torch.from_numpy(arrays["puzzles"]),
    )
