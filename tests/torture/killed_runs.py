"""A run that is killed repeatedly until it is done."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

import aim
import remains
from configurations import Configuration
from nursery import Nursery
from remains import Remains

AIMED = 0.65  # share of kills aimed inside a save
MOST_LIVES = 60  # per run; without progress it would never end


@dataclass(frozen=True)
class Reference:
    """The uninterrupted run."""

    run: Path
    seconds: float


def uninterrupted(nursery: Nursery, configuration: Configuration, data: Path, run: Path) -> Reference:
    began = time.monotonic()
    code = nursery.end(nursery.start(configuration.arguments(data, run)))
    assert code == 0, nursery.log.read_text()[-2000:]
    return Reference(run, time.monotonic() - began)


def killed_until_done(
    nursery: Nursery, configuration: Configuration, data: Path, run: Path, longest: float, draw: random.Random
) -> list[Remains]:
    """Kill and resume one run until it is done; its kills. Those not aimed at a save come within `longest` seconds."""
    kills: list[Remains] = []
    for _ in range(MOST_LIVES):
        before = aim.folders(run)
        moment = aim.inside_a_save(draw, run) if draw.random() < AIMED else aim.at_a_time(draw, longest)
        training = aim.trains(run)
        life = nursery.start(configuration.arguments(data, run))
        aim.end_at(life, moment, training)
        code = nursery.end(life)
        if code == 0:
            return kills
        assert code == -9, nursery.log.read_text()[-2000:]
        kills.append(remains.examine(run, before, configuration.interval, configuration.keep))
        remains.require_sane_status(run, max(kill.logged for kill in kills), ("running", None), ("done", 0))
    raise AssertionError(f"not done after {MOST_LIVES} lives: {kills}")
