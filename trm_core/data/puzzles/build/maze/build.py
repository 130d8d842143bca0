"""Mazes from csv files, or generated -> a puzzle folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from trm_core.config.schema import PuzzleBuildConfig
from trm_core.data.puzzles.build.choose import Finished, read_and_choose
from trm_core.data.puzzles.build.folder import Kind, write_chosen
from trm_core.data.puzzles.build.items import Items, generated_items, refuse
from trm_core.data.puzzles.build.maze.check import solved
from trm_core.data.puzzles.build.maze.generate import generate
from trm_core.data.puzzles.build.maze.grid import ALPHABET, SYMBOLS, forms, symmetric
from trm_core.data.puzzles.build.parallel import Counter, Log, Progress, ranges, run_all
from trm_core.data.puzzles.build.report import BuiltPuzzles
from trm_core.data.puzzles.build.seeds import AUGMENT, generator
from trm_core.errors import ConfigError

_AT_ONCE = 50
_SYMMETRIES = 7  # besides the maze itself
DEFAULT_COUNT, DEFAULT_SIZE, SMALLEST, LARGEST = 1000, 30, 4, 1000


def build_maze(
    sources: list[Path], out: Path, settings: PuzzleBuildConfig, progress: Progress, log: Log
) -> BuiltPuzzles:
    """Build from files, or generate where there are none."""
    chosen, names = read_and_choose(
        sources,
        settings,
        ALPHABET,
        lambda: _generated(settings, progress, log),
        lambda part: _finish(part, settings.workers, progress),
        log,
    )
    side = chosen.train.items.side
    copies = min(settings.augmentations, _SYMMETRIES)
    if copies < settings.augmentations:
        note = f"each maze has only {_SYMMETRIES} symmetric copies, and all of them are written"
        chosen = replace(chosen, notes=(*chosen.notes, note))

    def copy(index: int, question: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        which = generator(settings.seed, AUGMENT, index).choice(_SYMMETRIES, copies, replace=False) + 1
        both = np.stack([question, answer]).reshape(2, side, side)
        turned = [symmetric(both, number).reshape(2, -1) for number in sorted(which.tolist())]
        return np.stack([pair[0] for pair in turned]), np.stack([pair[1] for pair in turned])

    kind = Kind("maze", SYMBOLS, 0, copies, copy)
    return write_chosen(out, chosen, kind, settings, names, {}, progress)


def _generated(settings: PuzzleBuildConfig, progress: Progress, log: Log) -> Items:
    side = settings.size or DEFAULT_SIZE
    if not SMALLEST <= side <= LARGEST:
        raise ConfigError(f"data.puzzles.size: a maze of {side} x {side}", hint=f"expected {SMALLEST} to {LARGEST}")
    count, min_path = settings.count or DEFAULT_COUNT, settings.min_path or max(3, side * side // 9)
    log(
        f"no source: {count} mazes of {side} x {side} are generated, {min_path} cells or more from S to G "
        f"(seed {settings.seed})"
    )
    jobs = [(*part, settings.seed, side, min_path) for part in ranges(count, _AT_ONCE)]
    counter = Counter(progress, "generate", count)
    made = run_all(generate, jobs, settings.workers, lambda part: counter.add(len(part[0])))
    questions, answers = (np.concatenate(parts) for parts in zip(*made, strict=True))
    return generated_items(side, questions, answers)


def _finish(items: Items, workers: int, progress: Progress) -> Finished:
    """Check what was read; refuse what is not a maze or not solved by its answer."""
    found = forms(items.questions, items.side)
    if not items.paths:
        return Finished(items, found)
    jobs = [(items.questions[a:b], items.answers[a:b], items.side) for a, b in ranges(len(items), _AT_ONCE)]
    counter = Counter(progress, "check", len(items))
    examined = run_all(_examine, jobs, workers, lambda part: counter.add(len(part)))
    results = [result for part in examined for result in part]
    refuse(
        items,
        ((index, result) for index, result in enumerate(results) if isinstance(result, str)),
        hint="fix or remove the line: a maze has one S, one G and a path between them, marked o in the solution",
    )
    answers = np.array(results, dtype=np.uint8).reshape(items.questions.shape)
    return Finished(replace(items, answers=answers), found)


def _examine(questions: np.ndarray, answers: np.ndarray, side: int) -> list[np.ndarray | str]:
    return [solved(question, answer, side) for question, answer in zip(questions, answers, strict=True)]
