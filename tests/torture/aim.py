"""When to kill a life: at a uniformly drawn moment, or inside one of its saves, which are observed from outside."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nursery import Life

from trm_core.training.checkpoint_folders import is_checkpoint_name
from trm_core.training.run_dir import CHECKPOINTS, METRICS

POLL_S = 0.0001
IDLE_S = 0.005  # polling interval before there is anything to see
FILES = 5  # written by one process before the manifest


@dataclass(frozen=True)
class Folders:
    """The contents of `checkpoints`."""

    complete: frozenset[str]
    pruned: frozenset[str]  # not yet deleted
    unfinished: dict[str, frozenset[str]]  # name -> files


def folders(run: Path) -> Folders:
    """A snapshot of the folders; one that vanishes meanwhile is left out."""
    complete, pruned, unfinished = set(), set(), {}
    parent = run / CHECKPOINTS
    for path in parent.iterdir() if parent.is_dir() else ():
        try:
            if path.name.endswith(".pruned"):
                pruned.add(path.name)
            elif path.name.startswith(".step_"):
                unfinished[path.name] = frozenset(file.name for file in path.iterdir())
            elif is_checkpoint_name(path.name):
                complete.add(path.name)
        except FileNotFoundError:
            continue
    return Folders(frozenset(complete), frozenset(pruned), unfinished)


Moment = Callable[[], bool]


def at_a_time(draw: random.Random, longest: float) -> Moment:
    """A moment within the first `longest` seconds of a life."""
    when = time.monotonic() + draw.uniform(0, longest)
    return lambda: time.monotonic() >= when


def inside_a_save(draw: random.Random, run: Path) -> Moment:
    """A moment in the first, second or third save of this life: between two of its files, around its manifest, or right
    after the rename, when older checkpoints are pruned.
    """
    before = folders(run)
    stale = before.unfinished.keys()
    saves = draw.randint(1, 3)
    files = draw.choice([*range(FILES + 2), None, None, None])
    late = draw.choice([0, draw.uniform(0, 0.004)])
    seen: set[str] = set()
    due: list[float] = []

    def now() -> bool:
        if due:
            return time.monotonic() >= due[0]
        found = folders(run)
        new = {name: held for name, held in found.unfinished.items() if name not in stale}
        seen.update(name.split(".")[1] for name in new)
        seen.update(found.complete - before.complete)
        if len(seen) >= saves:
            last = max(seen)
            there = any(len(held) >= (files or 0) for name, held in new.items() if name.split(".")[1] == last)
            if last in found.complete or (files is not None and there):
                due.append(time.monotonic() + late)
                return late == 0
        return False

    return now


def trains(run: Path) -> Callable[[], bool]:
    """A function that says whether this life has logged a step; before that it saves nothing."""
    path = run / METRICS

    def written() -> float:
        return path.stat().st_mtime_ns if path.exists() else 0

    before, found = written(), False

    def now() -> bool:
        nonlocal found
        found = found or written() != before
        return found

    return now


def end_at(life: Life, moment: Moment, training: Callable[[], bool]) -> None:
    """Kill the life at that moment unless it ends first. Polls rarely until it trains, since polling takes a core."""
    looked = time.monotonic()
    while not moment():
        if time.monotonic() - looked > 0.05:
            looked = time.monotonic()
            if life.over:
                return
        time.sleep(POLL_S if training() else IDLE_S)
    if not life.over:
        life.kill()
