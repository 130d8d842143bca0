"""ARC tasks as a folder of puzzles: every task is a group, in which the task itself and each of its copies is a puzzle.

The training split holds the train pairs of all tasks and the test pairs of all but the held-out ones; the test split
holds the test pairs of the held-out tasks, under the identifiers of their train pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from trm_core.config.schema import PuzzleBuildConfig
from trm_core.data.build.arc import MAX_SIDE, GridPair
from trm_core.data.puzzles.arc_held_out import held_out_document
from trm_core.data.puzzles.arc_tokens import PAD, SEQUENCE, SYMBOLS, VOCABULARY
from trm_core.data.puzzles.build.arc_augment import Copies, draw_copies, lay_copies
from trm_core.data.puzzles.build.arc_forms import form_of
from trm_core.data.puzzles.build.arc_source import ArcTask, held_out_subset, read_tasks
from trm_core.data.puzzles.build.folder import tool_version
from trm_core.data.puzzles.build.parallel import Counter, Log, Progress, in_order, ranges, run_all
from trm_core.data.puzzles.build.report import BuiltPuzzles
from trm_core.data.puzzles.build.splits import subsample
from trm_core.data.puzzles.build.write import SplitData, refuse_existing, write_folder
from trm_core.data.puzzles.layout import BLANK, SET, TEST_PUZZLES, Manifest, Metadata
from trm_core.errors import ConfigError

_BLOCK = 128  # copies laid out at once; part of what a seed means, since offsets are drawn block by block
_MOST = 2**31  # the layout's indices are int32


@dataclass(frozen=True)
class _Entry:
    """A task with its copies, which have consecutive identifiers."""

    task: ArcTask
    copies: Copies
    held_out: bool
    first_identifier: int

    @property
    def end_identifier(self) -> int:
        return self.first_identifier + len(self.copies)

    @property
    def test(self) -> list[GridPair]:
        return self.task.test if self.held_out else []

    @property
    def train(self) -> list[GridPair]:
        solved = [pair for pair in self.task.test if pair.output is not None]
        return self.task.train if self.held_out else self.task.train + solved

    def pairs(self, split: str) -> list[GridPair]:
        return self.train if split == "train" else self.test


def build_arc(
    sources: list[Path],
    out: Path,
    settings: PuzzleBuildConfig,
    progress: Progress,
    log: Log,
) -> BuiltPuzzles:
    """Write the folder `out` from ARC `sources` (see `arc_source`).

    Of `settings` it uses seed, workers, augmentations, subsample (training tasks) and test_subset. Only the current
    blocks are held in memory. Raises `DataError` for faults of a source, `ConfigError` for settings that contradict it,
    `UsageError` if `out` exists.
    """
    refuse_existing(out)
    tasks = read_tasks(sources)
    held_out, reason = held_out_subset(tasks, settings.test_subset)
    log(f"held out: the test pairs of subset {held_out}, {reason}")
    tasks, copies = _without_copies(tasks, held_out)
    tasks = _subsampled(tasks, held_out, settings)
    entries = _entries(tasks, held_out, settings, progress)
    _refuse_too_many(entries, settings)
    tested = [entry for entry in entries if entry.test]
    counter = Counter(progress, "write", _examples("train", entries) + _examples("test", entries))
    counts = write_folder(
        out,
        {
            "train": _split("train", entries, entries[-1].end_identifier, settings, counter),
            "test": _split("test", tested, entries[-1].end_identifier, settings, counter),
        },
        [BLANK, *(name for entry in entries for name in entry.copies.names(entry.task.name))],
        Manifest(
            kind="arc",
            height=MAX_SIDE,
            width=MAX_SIDE,
            symbols=SYMBOLS,
            sources=[str(source) for source in sources],
            seed=settings.seed,
            # The number of workers changes nothing, so it must not change the folder.
            settings=settings.model_dump(exclude={"seed", "workers"}) | {"test_subset": held_out},
            tool_version=tool_version(),
        ),
        files={
            TEST_PUZZLES: {entry.task.name: held_out_document(entry.task.train, entry.task.test) for entry in tested}
        },
    )
    return BuiltPuzzles(out, "arc", counts, (*copies, *_notes(entries, settings)))


def _without_copies(tasks: list[ArcTask], held_out: str) -> tuple[list[ArcTask], tuple[str, ...]]:
    """The tasks without copies of held-out ones, whose solutions they would teach; and a note if there were any."""
    forms = {form_of(task.train + task.test): task.name for task in tasks if held_out in task.subsets}
    kept, copies = [], []
    for task in tasks:
        original = None if held_out in task.subsets else forms.get(form_of(task.train + task.test))
        if original is None:
            kept.append(task)
        else:
            copies.append(f"{task.name} of {original}")
    if not copies:
        return kept, ()
    return kept, (f"{len(copies)} training tasks are copies of held-out ones ({copies[0]}, ...): they are left out",)


def _subsampled(tasks: list[ArcTask], held_out: str, settings: PuzzleBuildConfig) -> list[ArcTask]:
    """All held-out tasks, and as many of the others as asked for, in their order."""
    others = [number for number, task in enumerate(tasks) if held_out not in task.subsets]
    drawn = {others[index] for index in subsample(len(others), settings.subsample, settings.seed)}
    return [task for number, task in enumerate(tasks) if number in drawn or held_out in task.subsets]


def _entries(tasks: list[ArcTask], held_out: str, settings: PuzzleBuildConfig, progress: Progress) -> list[_Entry]:
    jobs = [(task.name, task.train + task.test, settings.augmentations, settings.seed) for task in tasks]
    counter = Counter(progress, "generate", len(tasks))
    copies = run_all(draw_copies, jobs, settings.workers, lambda _: counter.add(1))
    entries: list[_Entry] = []
    identifier = 1
    for task, own in zip(tasks, copies, strict=True):
        entries.append(_Entry(task, own, held_out in task.subsets, identifier))
        identifier += len(own)
    return entries


def _examples(split: str, entries: list[_Entry]) -> int:
    return sum(len(entry.pairs(split)) * len(entry.copies) for entry in entries)


def _refuse_too_many(entries: list[_Entry], settings: PuzzleBuildConfig) -> None:
    for split in ("train", "test"):
        examples = _examples(split, entries)
        if examples >= _MOST:
            raise ConfigError(
                f"data.puzzles.augmentations={settings.augmentations} makes {examples} {split} examples, "
                f"but the layout holds at most {_MOST - 1}",
                hint="make fewer copies",
            )


def _notes(entries: list[_Entry], settings: PuzzleBuildConfig) -> tuple[str, ...]:
    few = sum(len(entry.copies) <= settings.augmentations for entry in entries)
    unscored, untaught = (
        sum(pair.output is None for entry in entries if entry.held_out is held_out for pair in entry.task.test)
        for held_out in (True, False)
    )
    notes = {
        f"{few} of {len(entries)} tasks have fewer than {settings.augmentations} distinct copies": few,
        f"{unscored} held-out test pairs have no solution: their labels are ignored, they cannot be scored": unscored,
        f"{untaught} test pairs of the other subsets have no solution: nothing to learn, so they are left out": (
            untaught
        ),
    }
    return tuple(note for note, count in notes.items() if count)


def _split(
    name: str, entries: list[_Entry], num_identifiers: int, settings: PuzzleBuildConfig, counter: Counter
) -> SplitData:
    copies = np.array([len(entry.copies) for entry in entries], dtype=np.int64)
    examples = np.array([len(entry.pairs(name)) for entry in entries], dtype=np.int64)
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
        _blocks(name, entries, settings, counter),
        np.repeat(first, copies) + within,
        puzzle_indices,
        group_indices,
    )


def _blocks(
    name: str, entries: list[_Entry], settings: PuzzleBuildConfig, counter: Counter
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    work = partial(lay_copies, seed=settings.seed, translate=name == "train")
    jobs = [
        (entry.task.name, entry.pairs(name), entry.copies.part(start, stop), start)
        for entry in entries
        for start, stop in ranges(len(entry.copies), _BLOCK)
    ]
    # Closed here rather than by the garbage collector: an exception that is being reported keeps everything alive.
    with closing(in_order(work, jobs, settings.workers)) as blocks:
        for inputs, labels in blocks:
            yield inputs, labels
            counter.add(len(inputs))
