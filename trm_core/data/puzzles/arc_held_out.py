"""`test_puzzles.json` of an ARC folder: the held-out tasks, by id, in the form of ARC's own files.

Other readers expect an output for every test pair. Where none is known, a placeholder is written and marked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trm_core.data.build.arc import GridPair, raw_tasks, unsigned
from trm_core.data.puzzles.layout import TEST_PUZZLES

_STAND_IN: dict[str, Any] = {"output": [[0]], "unsolved": True}


@dataclass(frozen=True)
class HeldOutTask:
    """`test`: pairs of uint8 grids; `output` is None where the solution is not known."""

    name: str
    test: list[GridPair]


def held_out_document(train: Sequence[GridPair], test: Sequence[GridPair]) -> dict[str, list[dict[str, Any]]]:
    """A task as `test_puzzles.json` holds it."""
    return {"train": [_pair_document(pair) for pair in train], "test": [_pair_document(pair) for pair in test]}


def read_held_out(folder: Path) -> list[HeldOutTask]:
    """The held-out tasks of a puzzle folder, ours or another's. Raises `DataError` for a file that holds none."""
    return [
        HeldOutTask(
            raw.name,
            [
                GridPair(pair.input, None) if document.get("unsolved") is True else pair
                for pair, document in zip(map(unsigned, raw.pairs("test")), raw.document["test"], strict=True)
            ],
        )
        for raw in raw_tasks(folder / TEST_PUZZLES)
        if "test" in raw.document
    ]


def _pair_document(pair: GridPair) -> dict[str, Any]:
    return {"input": pair.input.tolist()} | (_STAND_IN if pair.output is None else {"output": pair.output.tolist()})
