"""The puzzles in which faults are planted: rows of tokens whose last cells ask for what the first ones say, and small
grids of several tasks, as in ARC folders.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.faults.capsules import Arrays

GIVEN, ASKED, VOCAB = 8, 4, 9
SIDE, BACKGROUND, FIRST_COLOUR, COLOURS, MARKER = 4, 1, 2, 5, 7


@dataclass
class Puzzles:
    """Inputs and labels [n, S] by split and field; if puzzles have identifiers, also `identifiers` and `groups` [n] of
    each example, with the examples of a puzzle adjacent. Token 0 pads labels.

    `tokens`: those that are mere names and may be permuted. `blank`: the token of an empty cell.
    """

    splits: dict[str, Arrays]
    vocab: int = VOCAB
    tokens: range = range(1, VOCAB)
    blank: int = 0

    @property
    def cells(self) -> int:
        """S, the number of cells."""
        return int(self.splits["train"]["inputs"].shape[1])


def repeating(seed: int, rows: int = 1500) -> Puzzles:
    """The answer to every asked cell is the token GIVEN cells before it."""
    random = np.random.default_rng(seed)
    splits: dict[str, Arrays] = {}
    for split, n in (("train", rows), ("test", rows // 5)):
        given = random.integers(1, VOCAB, (n, GIVEN))
        inputs = np.pad(given, ((0, 0), (0, ASKED)))
        splits[split] = {"inputs": inputs, "labels": np.concatenate([given, given[:, :ASKED]], 1)}
    return Puzzles(splits)


def recoloured(seed: int, tasks: int = 8, copies: int = 3, examples: int = 4) -> Puzzles:
    """Grids of 3 or 4 rows and columns on a canvas of SIDE x SIDE. The cells of a row with a marker get a colour that
    only the puzzle's identifier reveals.

    A group is a task and its copies in other colours. Each task has several groups, and the test split has other
    examples of the same tasks.
    """
    random = np.random.default_rng(seed)
    colours = FIRST_COLOUR + random.permuted(np.tile(np.arange(COLOURS), (tasks, 1)), axis=1)[:, :copies]
    return Puzzles(
        {split: _grids(random, colours, times, examples) for split, times in (("train", 15), ("test", 3))},
        vocab=MARKER + 1,
        tokens=range(FIRST_COLOUR, FIRST_COLOUR + COLOURS),
        blank=BACKGROUND,
    )


def _grids(random: np.random.Generator, colours: NDArray[Any], times: int, examples: int) -> Arrays:
    """`examples` of every puzzle in `times` groups of every task; the copies of a task fill with `colours` [T, C]."""
    puzzle = np.tile(np.repeat(np.arange(colours.size), examples), times)
    n = len(puzzle)
    grids = random.integers(FIRST_COLOUR, FIRST_COLOUR + COLOURS, (n, SIDE, SIDE))
    grids[random.random(grids.shape) < 0.3] = BACKGROUND
    marked = random.random((n, SIDE)) < 0.5
    rows = np.argwhere(marked)
    grids[rows[:, 0], rows[:, 1], random.integers(0, 2, len(rows))] = MARKER
    outside = np.arange(SIDE) >= random.integers(SIDE - 1, SIDE + 1, (2, n, 1))
    grids[outside[0][:, :, None] | outside[1][:, None]] = 0
    filled = marked[:, :, None] & (grids >= FIRST_COLOUR) & (grids < MARKER)
    answers = np.where(filled, colours.ravel()[puzzle][:, None, None], grids)
    return {
        "inputs": grids.reshape(n, -1),
        "labels": answers.reshape(n, -1),
        "identifiers": puzzle + 1,
        "groups": np.arange(n) // (examples * colours.shape[1]),
    }


def write_folder(puzzles: Puzzles, folder: Path) -> None:
    """Write the puzzles in the public layout. Without identifiers and groups, every example is its own puzzle and
    group.
    """
    splits = {split: dict(fields) for split, fields in puzzles.splits.items()}
    for fields in splits.values():
        n = len(fields["inputs"])
        fields.setdefault("identifiers", np.zeros(n, np.int64))
        fields.setdefault("groups", np.arange(n))
    identifiers = 1 + max(int(fields["identifiers"].max()) for fields in splits.values())
    for split, fields in splits.items():
        n, groups = len(fields["inputs"]), fields["groups"]
        new_group = np.diff(groups) != 0
        first = np.flatnonzero(np.r_[True, new_group | (np.diff(fields["identifiers"]) != 0)])
        first_of_group = np.flatnonzero(np.r_[True, new_group])
        arrays: dict[str, Any] = {name: fields[name].astype(np.uint8) for name in ("inputs", "labels")}
        arrays["puzzle_identifiers"] = fields["identifiers"][first].astype(np.int32)
        arrays["puzzle_indices"] = np.r_[first, n].astype(np.int32)
        arrays["group_indices"] = np.r_[np.searchsorted(first, first_of_group), len(first)].astype(np.int32)
        (folder / split).mkdir(parents=True, exist_ok=True)
        for name, values in arrays.items():
            np.save(folder / split / f"all__{name}.npy", values)
        about = {
            "pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0, "vocab_size": puzzles.vocab,
            "seq_len": puzzles.cells, "num_puzzle_identifiers": identifiers, "total_groups": len(first_of_group),
            "mean_puzzle_examples": n / len(first), "total_puzzles": len(first), "sets": ["all"],
        }  # fmt: skip
        (folder / split / "dataset.json").write_text(json.dumps(about))
    names = ["<blank>", *(f"task-{number}" for number in range(1, identifiers))]
    (folder / "identifiers.json").write_text(json.dumps(names))
