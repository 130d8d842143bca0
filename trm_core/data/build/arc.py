"""ARC tasks: JSON files of grids, single tasks, folders of them, or the combined challenges/solutions pair of Kaggle.

A sample is one pair of a task: input grid and output grid. All pairs of a task share a split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trm_core.data.build.folders import visible
from trm_core.data.build.records import NO_LABELS, Log, Record, digest_array
from trm_core.data.unique_keys import parsed
from trm_core.errors import ConfigError, DataError

MAX_SIDE = 30
COLOURS = 10
PARTS: tuple[Literal["train", "test"], ...] = ("train", "test")
CHALLENGES, SOLUTIONS = "_challenges.json", "_solutions.json"
# Matches AboveBelow1 and TopBottom2D7, not the hexadecimal ids of ARC-AGI.
_CONCEPT = re.compile(r"^([A-Za-z]{3,}(?:\d[A-Z])?)_?\d+$")


@dataclass(frozen=True, slots=True)
class GridPair:
    """int8 [h, w] grids of colours 0..9; `output` is None where a test pair has no solution."""

    input: np.ndarray
    output: np.ndarray | None


@dataclass(frozen=True)
class RawTask:
    """A task as its file holds it; only `pairs` looks at it closely. `solutions`: of its test pairs, where those have
    no output of their own.
    """

    file: Path
    name: str
    document: dict[str, Any]
    solutions: list[Any]

    def pairs(self, part: Literal["train", "test"]) -> Iterator[GridPair]:
        """The checked pairs of a part. Raises `DataError` that names file, task and pair."""
        pairs = self.document.get(part, [])
        if not isinstance(pairs, list):
            raise DataError(f"{self.file}: task {self.name}: {part} is not a list of pairs")
        if part == "test" and len(self.solutions) > len(pairs):
            raise DataError(
                f"{self.file}: task {self.name}: has {len(self.solutions)} solutions for {len(pairs)} test pairs"
            )
        for number, pair in enumerate(pairs):
            where = f"{self.file}: task {self.name}, {part} pair {number}"
            if not isinstance(pair, dict) or "input" not in pair:
                raise DataError(f"{where}: has no input grid")
            output = pair.get("output")
            if output is None and part == "test" and number < len(self.solutions):
                output = self.solutions[number]
            yield GridPair(
                parse_grid(pair["input"], f"{where}, input"),
                None if output is None else parse_grid(output, f"{where}, output"),
            )


class ArcReader:
    """Streams the pairs of all tasks. `label` None or "none": no labels; "concept": a task's id without its number."""

    def __init__(self, path: str, label: str | None, log: Log) -> None:
        if label not in (None, NO_LABELS, "concept"):
            raise ConfigError(
                f"data.build.label={label} is not known for ARC grids",
                hint=f"use concept (ids like AboveBelow1), or {NO_LABELS} to predict the concepts of cells",
            )
        self.path = path
        self.has_labels = label == "concept"
        self._log: Log | None = log

    def records(self, *, digests: bool) -> Iterator[Record]:
        unsolved = 0
        for task in raw_tasks(Path(self.path)):
            label = self._concept(task.name) if self.has_labels else None
            for part in PARTS:
                for grids in task.pairs(part):
                    unsolved += grids.output is None
                    yield Record(grids, _digest(grids) if digests else 0, label, f"{self.path}:{task.name}")
        if unsolved and self._log is not None:
            self._log(f"{self.path}: {unsolved} test pairs have no solution: their output capsules are padding")
            self._log = None

    def _concept(self, name: str) -> str:
        concept = concept_of(name)
        if concept is None:
            raise DataError(
                f"{self.path}: task {name}: its id names no concept", hint="leave data.build.label out for these tasks"
            )
        return concept


def concept_of(task: str) -> str | None:
    """The concept that a task's id names, as AboveBelow1 does; None for other ids."""
    match = _CONCEPT.match(task)
    return None if match is None else match.group(1)


def unsigned(pair: GridPair) -> GridPair:
    """The same pair as uint8, the type of puzzle tokens."""
    return GridPair(pair.input.astype(np.uint8), None if pair.output is None else pair.output.astype(np.uint8))


def looks_like_arc(document: Any) -> bool:
    """True for one task, or a mapping of task ids to tasks."""
    if not isinstance(document, dict) or not document:
        return False
    task = document if "train" in document else next(iter(document.values()))
    return isinstance(task, dict) and isinstance(task.get("train"), list)


def load_json(path: Path) -> Any:
    """A whole JSON file. Raises `DataError` with line and column of what is wrong, or with the key that an object has
    twice.
    """
    try:
        return parsed(path.read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: is not JSON ({error.msg}, column {error.colno})") from None
    except RecursionError:
        raise DataError(f"{path}: is nested too deeply") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def solutions_path(path: Path) -> Path | None:
    """The solutions file that belongs to a Kaggle challenges file, if it is there."""
    if not path.name.endswith(CHALLENGES):
        return None
    candidate = path.with_name(path.name.removesuffix(CHALLENGES) + SOLUTIONS)
    return candidate if candidate.exists() else None


def combined_files(folder: Path) -> list[Path]:
    """The challenges files of a folder; where there are any, its other files hold no further tasks."""
    return visible(folder, f"*{CHALLENGES}")


def parse_grid(raw: Any, where: str) -> np.ndarray:
    """A checked int8 grid [h, w]. Raises `DataError` for anything else."""
    if not isinstance(raw, list) or not raw or not all(isinstance(row, list) and row for row in raw):
        raise DataError(f"{where}: is not a grid (a list of rows of colours)")
    widths = {len(row) for row in raw}
    if len(widths) > 1:
        raise DataError(f"{where}: is not rectangular, its rows have {min(widths)} to {max(widths)} cells")
    if len(raw) > MAX_SIDE or len(raw[0]) > MAX_SIDE:
        raise DataError(f"{where}: is {len(raw)} x {len(raw[0])}, more than {MAX_SIDE} x {MAX_SIDE}")
    for row in raw:
        for cell in row:
            if type(cell) is not int or not 0 <= cell < COLOURS:
                raise DataError(f"{where}: holds {cell!r}, colours are 0 to {COLOURS - 1}")
    return np.asarray(raw, dtype=np.int8)


def raw_tasks(path: Path) -> Iterator[RawTask]:
    """The tasks of a source, in the order of the file or of the file names."""
    if path.is_dir():
        combined = combined_files(path)
        for file in combined:
            yield from raw_tasks(file)
        for file in [] if combined else visible(path, "*.json"):
            yield RawTask(file, file.stem, _task(file, file.stem, load_json(file)), [])
        return
    document = load_json(path)
    if not isinstance(document, dict):
        raise DataError(f"{path}: holds a {type(document).__name__}, expected ARC tasks")
    if "train" in document:
        yield RawTask(path, path.stem, document, [])
        return
    beside = solutions_path(path)
    solutions = load_json(beside) if beside is not None else {}
    if not isinstance(solutions, dict):
        raise DataError(f"{beside}: holds a {type(solutions).__name__}, expected solutions by task id")
    for name, task in document.items():
        found = solutions.get(name, [])
        if not isinstance(found, list):
            raise DataError(f"{beside}: task {name}: is not a list of grids")
        yield RawTask(path, name, _task(path, name, task), found)


def _task(path: Path, name: str, task: Any) -> dict[str, Any]:
    if not isinstance(task, dict) or not isinstance(task.get("train"), list):
        raise DataError(f"{path}: task {name}: has no list of train pairs")
    return task


def _digest(grids: GridPair) -> int:
    # The digest covers the pair as the model sees it.
    output = np.zeros((0, 0), dtype=np.int8) if grids.output is None else grids.output
    return digest_array(np.frombuffer(repr((grids.input.tolist(), output.tolist())).encode(), dtype=np.uint8))
