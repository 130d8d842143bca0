"""ARC tasks as a folder of puzzles: every task a group, the task itself and each of its copies a puzzle.

The training split holds the train pairs of all tasks, and the test pairs of all but the held-out ones; the test split
holds the test pairs of the held-out tasks, under the identifiers that their train pairs have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from trm_core.config.schema import PuzzleBuildConfig
from trm_core.data.build.arc import MAX_SIDE, GridPair
from trm_core.data.puzzles.arc_held_out import held_out_document
from trm_core.data.puzzles.arc_tokens import PAD, SEQUENCE, SYMBOLS, VOCABULARY
from trm_core.data.puzzles.build.arc_augment import Copies, draw_copies, lay_copies
from trm_core.data.puzzles.build.arc_source import ArcTask, held_out_subset, read_tasks
from trm_core.data.puzzles.build.parallel import Log, Progress, in_order, ranges
from trm_core.data.puzzles.build.report import BuiltPuzzles
from trm_core.data.puzzles.build.write import SplitData, write_folder
from trm_core.data.puzzles.layout import BLANK, SET, TEST_PUZZLES, Manifest, Metadata
from trm_core.errors import ConfigError

_BLOCK = 128  # copies laid at once; part of what a seed means, since offsets are drawn block by block
_MOST = 2**31  # the layout's indices are int32


@dataclass(frozen=True)
class _Entry:
    """A task with its copies; what of it goes into which split."""

    task: ArcTask
    copies: Copies
    train: list[GridPair]
    test: list[GridPair]  # empty unless it is held out
    first_identifier: int


def build_arc(
    sources: list[Path],
    out: Path,
    settings: PuzzleBuildConfig,
    progress: Progress,
    log: Log,
) -> BuiltPuzzles:
    """Write the folder `out` from ARC `sources` (see `arc_source`).

    Of `settings` it heeds seed, workers, augmentations, subsample (training tasks) and test_subset. Only the blocks at
    hand are held in memory. Raises `DataError` for what is wrong with a source, `ConfigError` for what contradicts it,
    `UsageError` if `out` exists.
    """
    notes: list[str] = []

    def say(message: str) -> None:
        notes.append(message)
        log(message)

    tasks = read_tasks(sources)
    held_out, reason = held_out_subset(tasks, settings.test_subset)
    say(f"held out: the test pairs of subset {held_out} ({reason})")
    tasks = _subsampled(tasks, held_out, settings)
    entries = _entries(tasks, held_out, settings, progress, say)
    num_identifiers = entries[-1].first_identifier + len(entries[-1].copies)
    splits = {
        "train": _split("train", entries, num_identifiers, settings, progress),
        "test": _split("test", [entry for entry in entries if entry.test], num_identifiers, settings, progress),
    }
    counts = write_folder(
        out,
        splits,
        [BLANK, *(name for entry in entries for name in entry.copies.names(entry.task.name))],
        Manifest(
            kind="arc",
            height=MAX_SIDE,
            width=MAX_SIDE,
            symbols=SYMBOLS,
            sources=[str(source) for source in sources],
            seed=settings.seed,
            settings={
                "augmentations": settings.augmentations,
                "subsample": settings.subsample,
                "test_subset": held_out,
            },
        ),
        files={
            TEST_PUZZLES: {
                entry.task.name: held_out_document(entry.task.train, entry.task.test) for entry in entries if entry.test
            }
        },
    )
    return BuiltPuzzles(out, "arc", counts, tuple(notes))


def _subsampled(tasks: list[ArcTask], held_out: str, settings: PuzzleBuildConfig) -> list[ArcTask]:
    """All held-out tasks, and as many of the others as were asked for, in their order."""
    others = [number for number, task in enumerate(tasks) if held_out not in task.subsets]
    if settings.subsample is None or settings.subsample >= len(others):
        return tasks
    random = np.random.default_rng(settings.seed & 0xFFFFFFFF)
    left_out = set(others) - {others[i] for i in random.permutation(len(others))[: settings.subsample]}
    return [task for number, task in enumerate(tasks) if number not in left_out]


def _entries(
    tasks: list[ArcTask],
    held_out: str,
    settings: PuzzleBuildConfig,
    progress: Progress,
    say: Log,
) -> list[_Entry]:
    jobs = [(task.name, task.train + task.test, settings.augmentations, settings.seed) for task in tasks]
    entries: list[_Entry] = []
    identifier, few, unscored, untaught = 1, 0, 0, 0
    for task, copies in zip(tasks, in_order(draw_copies, jobs, settings.workers), strict=True):
        is_test = held_out in task.subsets
        solved = [pair for pair in task.test if pair.output is not None]
        if is_test:
            unscored += len(task.test) - len(solved)
        else:
            untaught += len(task.test) - len(solved)
        train = task.train if is_test else task.train + solved
        entries.append(_Entry(task, copies, train, task.test if is_test else [], identifier))
        identifier += len(copies)
        few += len(copies) <= settings.augmentations
        progress("augment", len(entries), len(tasks))
    if few:
        say(f"{few} of {len(tasks)} tasks have fewer than {settings.augmentations} copies that differ")
    if unscored:
        say(f"{unscored} held-out test pairs have no solution: their labels are ignored, they cannot be scored")
    if untaught:
        say(
            f"{untaught} test pairs of the other subsets have no solution: there is nothing to learn, they are left out"
        )
    for split in ("train", "test"):
        examples = sum(len(getattr(entry, split)) * len(entry.copies) for entry in entries)
        if examples >= _MOST:
            raise ConfigError(
                f"data.puzzles.augmentations={settings.augmentations}: makes {examples} {split} examples, "
                f"the layout holds {_MOST - 1}",
                hint="make fewer copies",
            )
    return entries


def _split(
    name: str,
    entries: list[_Entry],
    num_identifiers: int,
    settings: PuzzleBuildConfig,
    progress: Progress,
) -> SplitData:
    copies = np.array([len(entry.copies) for entry in entries], dtype=np.int64)
    examples = np.array([len(getattr(entry, name)) for entry in entries], dtype=np.int64)
    first = np.array([entry.first_identifier for entry in entries], dtype=np.int64)
    group_indices = np.concatenate([[0], np.cumsum(copies)])
    within = np.arange(group_indices[-1]) - np.repeat(group_indices[:-1], copies)
    puzzle_indices = np.concatenate([[0], np.cumsum(np.repeat(examples, copies))])
    metadata = Metadata(
        pad_id=PAD,
        ignore_label_id=PAD,
        blank_identifier_id=0,
        vocab_size=VOCABULARY,
        seq_len=SEQUENCE,
        num_puzzle_identifiers=num_identifiers,
        total_groups=len(entries),
        mean_puzzle_examples=float(puzzle_indices[-1] / group_indices[-1]),
        total_puzzles=int(group_indices[-1]),
        sets=[SET],
    )
    return SplitData(
        metadata,
        _blocks(name, entries, int(puzzle_indices[-1]), settings, progress),
        np.repeat(first, copies) + within,
        puzzle_indices,
        group_indices,
    )


def _blocks(
    name: str,
    entries: list[_Entry],
    total: int,
    settings: PuzzleBuildConfig,
    progress: Progress,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    done = 0
    work = partial(lay_copies, seed=settings.seed, translate=name == "train")
    jobs = [
        (entry.task.name, getattr(entry, name), entry.copies.part(start, stop), start)
        for entry in entries
        for start, stop in ranges(len(entry.copies), _BLOCK)
    ]
    for inputs, labels in in_order(work, jobs, settings.workers):
        yield inputs, labels
        done += len(inputs)
        progress(name, done, total)
