"""From puzzles to a training and a test split that share no puzzle, not even a symmetric copy of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trm_core.config.schema import PuzzleBuildConfig
from trm_core.data.puzzles.build.items import Alphabet, Items, read_items
from trm_core.data.puzzles.build.parallel import Log
from trm_core.data.puzzles.build.sources import find_files
from trm_core.data.puzzles.build.splits import split_by_form, subsample
from trm_core.errors import DataError


@dataclass(frozen=True)
class Finished:
    """Checked puzzles with all their answers, and numbers [M] that are equal for symmetric copies."""

    items: Items
    forms: np.ndarray


@dataclass(frozen=True)
class Chosen:
    """The splits; `test` is None where nothing is held out. `notes` say what was left out, and why."""

    train: Finished
    test: Finished | None
    notes: tuple[str, ...]


def read_and_choose(
    sources: list[Path],
    settings: PuzzleBuildConfig,
    alphabet: Alphabet,
    generate: Callable[[], Items],
    finish: Callable[[Items], Finished],
    log: Log,
) -> tuple[Chosen, list[str]]:
    """The splits of the puzzles in files, or of generated ones where there are no files, and where they come from."""
    files = find_files(sources, settings.test_source, log)
    items = read_items(files.train, alphabet, log) if files.train else generate()
    test = read_items(files.test, alphabet, log) if files.test else None
    names = [str(path) for path in (*files.train, *files.test)] or ["generated"]
    return choose(items, test, settings, finish), names


def choose(
    items: Items, test: Items | None, settings: PuzzleBuildConfig, finish: Callable[[Items], Finished]
) -> Chosen:
    """Check and split. `finish` is costly: with a test file it sees only the drawn part of a large training file."""
    if test is not None and test.side != items.side:
        raise DataError(
            f"held-out puzzles of {test.side} x {test.side}, training puzzles of {items.side} x {items.side}",
            hint="give puzzles of one size",
        )
    notes: list[str] = []
    if test is None:
        every = finish(items)
        held_out = split_by_form(every.forms, settings.test, settings.seed)
        train, tested = _take(every, ~held_out), _take(every, held_out)
        train = _take(train, _drawn(train.items, settings, notes))
    else:
        train = finish(items.take(_drawn(items, settings, notes)))
        tested = finish(test)
        leaked = np.isin(train.forms, tested.forms)
        if leaked.any():
            notes.append(
                f"{leaked.sum()} training puzzles were left out: they are symmetric copies of held-out puzzles"
            )
            train = _take(train, ~leaked)
    if not len(train.items):
        raise DataError("no puzzle is left to train on", hint="give more puzzles, or hold out fewer")
    for name, part in (("training", train), ("test", tested)):
        copies = len(part.forms) - len(np.unique(part.forms))
        if copies:
            notes.append(f"{copies} of {len(part.forms)} {name} puzzles are symmetric copies of others of that split")
    return Chosen(train, tested if len(tested.items) else None, tuple(notes))


def _drawn(items: Items, settings: PuzzleBuildConfig, notes: list[str]) -> np.ndarray:
    """Indices of the training puzzles that are hard enough and drawn."""
    able = np.arange(len(items))
    if settings.min_rating is not None:
        if np.isnan(items.ratings).any():
            index = int(np.isnan(items.ratings).argmax())
            raise DataError(
                f"{items.place(index)}: no rating, which data.puzzles.min_rating needs",
                hint="leave min_rating out, or give a csv file with a column rating",
            )
        able = np.flatnonzero(items.ratings >= settings.min_rating)
        notes.append(f"{len(items) - len(able)} training puzzles have a rating under {settings.min_rating}")
    if settings.subsample is not None and settings.subsample > len(able):
        notes.append(f"only {len(able)} training puzzles where data.puzzles.subsample asks for {settings.subsample}")
    return able[subsample(len(able), settings.subsample, settings.seed)]


def _take(finished: Finished, chosen: np.ndarray) -> Finished:
    return replace(finished, items=finished.items.take(chosen), forms=finished.forms[chosen])
