"""The tasks of ARC sources, by subset: training, evaluation, concept, and whatever else the files are called.

A source is a combined file (`..._SUBSET_challenges.json`, its solutions beside it), a folder SUBSET with a file per
task, or a folder of such files or folders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trm_core.data.build.arc import CHALLENGES, SOLUTIONS, GridPair, RawTask, combined_files, raw_tasks, unsigned
from trm_core.data.puzzles.arc_copies import SEPARATOR
from trm_core.data.puzzles.layout import BLANK
from trm_core.errors import ConfigError, DataError

_EVALUATION = "evaluation"


@dataclass(frozen=True)
class ArcTask:
    """A checked task of uint8 grids. Test pairs may lack their output. `subsets`: all in which it was found."""

    name: str
    file: Path
    subsets: tuple[str, ...]
    train: list[GridPair]
    test: list[GridPair]


def read_tasks(sources: Sequence[Path]) -> list[ArcTask]:
    """Every task of every source, in the order of the sources.

    A task found twice is kept once, with the solutions known from both. Raises `DataError` for files that hold no
    tasks, for malformed tasks, and for two different tasks with one name.
    """
    tasks: dict[str, ArcTask] = {}
    for source in dict.fromkeys(map(_challenges_of, sources)):
        found = [_checked(raw, subset) for subset, path in _subsets(source) for raw in raw_tasks(path)]
        if not found:
            raise DataError(
                f"{source}: holds no ARC tasks",
                hint="name a ..._challenges.json, a folder with a JSON file per task, or a folder of those",
            )
        for task in found:
            earlier = tasks.get(task.name)
            tasks[task.name] = task if earlier is None else _united(earlier, task)
    return list(tasks.values())


def held_out_subset(tasks: Sequence[ArcTask], asked: str | None) -> tuple[str, str]:
    """The subset whose test pairs are held out, and why that one. Raises `ConfigError` if there is no such subset."""
    subsets = list(dict.fromkeys(subset for task in tasks for subset in task.subsets))
    if asked is not None:
        if asked not in subsets:
            raise ConfigError(
                f"data.puzzles.test_subset={asked}: the sources have no such subset", hint=f"use {', '.join(subsets)}"
            )
        return asked, "as asked for"
    if len(subsets) == 1:
        return subsets[0], "the only one"
    for subset in subsets:
        if subset.startswith(_EVALUATION):
            return subset, "by its name"
    return subsets[-1], "the last one"


def _subsets(source: Path) -> Iterator[tuple[str, Path]]:
    """(name of the subset, file or folder of its tasks) in a source."""
    if not source.exists():
        raise DataError(f"{source}: does not exist")
    if not source.is_dir():
        yield _subset_of_file(source), source
        return
    combined = combined_files(source)
    if combined:
        yield from ((_subset_of_file(path), path) for path in combined)
    elif any(source.glob("*.json")):
        yield source.resolve().name, source
    else:
        folders = sorted(path for path in source.iterdir() if path.is_dir())
        for folder in folders:
            if any(folder.glob("*.json")):
                yield from _subsets(folder)


def _challenges_of(path: Path) -> Path:
    """Of a pair of files the one with the challenges: `*.json` on the command line names both."""
    challenges = path.with_name(path.name.removesuffix(SOLUTIONS) + CHALLENGES)
    return challenges if path.name.endswith(SOLUTIONS) and challenges.exists() else path


def _subset_of_file(path: Path) -> str:
    if path.name.endswith(CHALLENGES):
        return path.name.removesuffix(CHALLENGES).rpartition("_")[2] or path.stem
    return path.stem


def _checked(raw: RawTask, subset: str) -> ArcTask:
    where = f"{raw.file}: task {raw.name}"
    if SEPARATOR in raw.name or raw.name in ("", BLANK) or not raw.name.isprintable():
        raise DataError(f"{where}: its id cannot be the name of a puzzle", hint="give the task another id")
    train = [unsigned(pair) for pair in raw.pairs("train")]
    test = [unsigned(pair) for pair in raw.pairs("test")]
    for part, pairs in (("train", train), ("test", test)):
        if not pairs:
            raise DataError(f"{where}: has no {part} pairs")
    for number, pair in enumerate(train):
        if pair.output is None:
            raise DataError(f"{where}, train pair {number}: has no output grid")
    return ArcTask(raw.name, raw.file, (subset,), train, test)


def _united(first: ArcTask, second: ArcTask) -> ArcTask:
    """One task out of two of the same name; `DataError` if they are not the same."""
    same = (
        len(first.train) == len(second.train)
        and len(first.test) == len(second.test)
        and all(
            np.array_equal(one.input, other.input)
            and (one.output is None or other.output is None or np.array_equal(one.output, other.output))
            for one, other in zip(first.train + first.test, second.train + second.test, strict=True)
        )
    )
    if not same:
        raise DataError(
            f"{second.file}: task {second.name}: differs from task {first.name} of {first.file}",
            hint="leave one of the two sources out: copies of both would share their identifiers",
        )
    test = [one if one.output is not None else other for one, other in zip(first.test, second.test, strict=True)]
    return ArcTask(first.name, first.file, tuple(dict.fromkeys(first.subsets + second.subsets)), first.train, test)
