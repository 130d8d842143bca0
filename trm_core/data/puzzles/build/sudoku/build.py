"""Sudokus from files, or generated -> a puzzle folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from trm_core.config.schema import PuzzleBuildConfig
from trm_core.data.puzzles.build.choose import Finished, read_and_choose
from trm_core.data.puzzles.build.folder import Kind, write_chosen
from trm_core.data.puzzles.build.items import Alphabet, Items, generated_items, refuse
from trm_core.data.puzzles.build.parallel import Counter, Log, Progress, ranges, run_all
from trm_core.data.puzzles.build.report import BuiltPuzzles
from trm_core.data.puzzles.build.seeds import AUGMENT, generator
from trm_core.data.puzzles.build.sudoku.augment import symmetric_copies
from trm_core.data.puzzles.build.sudoku.forms import forms
from trm_core.data.puzzles.build.sudoku.generate import generate
from trm_core.data.puzzles.build.sudoku.geometry import GEOMETRIES
from trm_core.data.puzzles.build.sudoku.solver import solve
from trm_core.errors import ConfigError

_GENERATED_AT_ONCE, _CHECKED_AT_ONCE = 128, 1000
DEFAULT_COUNT, DEFAULT_SIZE = 1000, 9

ALPHABET = Alphabet(
    codes=lambda side: {".": 0, **{str(digit): digit for digit in range(side + 1)}},
    side={n * n: n for n in GEOMETRIES}.get,
    expected="81 characters for 9 x 9, 36 for 6 x 6 or 16 for 4 x 4",
    characters="digits from 1 to the side of the grid, and . or 0 for empty cells",
    lines=True,
)


def build_sudoku(
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
    geometry = GEOMETRIES[side]
    facts: dict[str, int] = {}
    if side == 4:
        # All grids of 4 digits are copies of two, so splits cannot keep solutions apart; the user should know.
        answers = [part.items.answers for part in (chosen.train, chosen.test) if part is not None]
        facts["solution_forms"] = len(np.unique(forms(np.concatenate(answers), geometry)))
        note = f"up to symmetry the puzzles have {facts['solution_forms']} solutions, which the splits share"
        chosen = replace(chosen, notes=(*chosen.notes, note))

    def copy(index: int, question: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rng = generator(settings.seed, AUGMENT, index)
        return symmetric_copies(question, answer, geometry, settings.augmentations, rng)

    symbols = ["<pad>", ".", *map(str, range(1, side + 1))]
    kind = Kind("sudoku", symbols, 1, settings.augmentations, copy)
    return write_chosen(out, chosen, kind, settings, names, facts, progress)


def _generated(settings: PuzzleBuildConfig, progress: Progress, log: Log) -> Items:
    side = settings.size or DEFAULT_SIZE
    if side not in GEOMETRIES:
        raise ConfigError(f"data.puzzles.size: a Sudoku of {side} digits", hint="expected 4, 6 or 9")
    if settings.clues is not None and settings.clues > side * side:
        raise ConfigError(
            f"data.puzzles.clues: {settings.clues} clues in {side * side} cells", hint=f"at most {side * side}"
        )
    count = settings.count or DEFAULT_COUNT
    log(f"no source: {count} Sudokus of {side} x {side} are generated (seed {settings.seed})")
    jobs = [(*part, settings.seed, side, settings.clues) for part in ranges(count, _GENERATED_AT_ONCE)]
    counter = Counter(progress, "generate", count)
    made = run_all(_generate, jobs, settings.workers, lambda part: counter.add(len(part[0])))
    puzzles, solutions = (np.concatenate(parts) for parts in zip(*made, strict=True))
    return generated_items(side, puzzles, solutions)


def _finish(items: Items, workers: int, progress: Progress) -> Finished:
    """Solve what was read; refuse puzzles without a single solution, or with another solution than the file gives."""
    solve_them = bool(items.paths)
    jobs = [(items.questions[a:b], items.side, solve_them) for a, b in ranges(len(items), _CHECKED_AT_ONCE)]
    counter = Counter(progress, "check", len(items))
    examined = run_all(_examine, jobs, workers, lambda part: counter.add(len(part[0])))
    if not examined:
        return Finished(items, np.zeros(0, dtype=np.uint64))
    counts, answers, found = (np.concatenate(parts) for parts in zip(*examined, strict=True))
    if solve_them:
        _refuse(items, counts, answers)
        items = replace(items, answers=answers)
    return Finished(items, found)


def _refuse(items: Items, counts: np.ndarray, answers: np.ndarray) -> None:
    wrong = (items.answers > 0).any(axis=1) & (items.answers != answers).any(axis=1)
    bad = np.flatnonzero((counts != 1) | wrong)
    words = {0: "the puzzle has no solution", 1: "the solution in the file does not solve the puzzle"}
    refuse(
        items,
        [(int(index), words.get(int(counts[index]), "the puzzle has several solutions")) for index in bad],
        hint="fix or remove the line: only puzzles with exactly one solution can be learned and scored",
    )


def _generate(start: int, stop: int, seed: int, side: int, clues: int | None) -> tuple[np.ndarray, np.ndarray]:
    return generate(start, stop, seed, GEOMETRIES[side], clues)


def _examine(puzzles: np.ndarray, side: int, solve_them: bool) -> Sequence[np.ndarray]:
    """Numbers of solutions, one solution each, and forms."""
    geometry = GEOMETRIES[side]
    found = forms(puzzles, geometry)
    if not solve_them:
        return np.ones(len(puzzles), dtype=np.int64), np.zeros_like(puzzles), found
    solved = solve(puzzles, geometry)
    return solved.counts, solved.solutions, found
