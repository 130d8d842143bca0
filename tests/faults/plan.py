"""The plan of a run of the zoo: a fault changes a plan, and never looks at the code that diagnoses it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

from tests.faults.capsules import Capsules
from tests.faults.puzzles import Puzzles

T = TypeVar("T")
SEVERITIES = ("mild", "middle", "severe")


@dataclass
class Plan:
    """`settings`: config overrides. `load`: loads the capsules, for faults that change them (`capsules` is then written
    beside the run). `before` is called with the run directory when the capsules are written and `settings` name them;
    `patches` are active while it trains; `after` is called with the finished run directory.
    """

    severity: int
    seed: int
    settings: dict[str, Any]
    load: Callable[[], Capsules | Puzzles]
    capsules: Capsules | Puzzles | None = None
    patches: list[AbstractContextManager[Any]] = field(default_factory=list)
    before: list[Callable[[Path], None]] = field(default_factory=list)
    after: list[Callable[[Path], None]] = field(default_factory=list)
    processes: int = 1

    def of(self, mild: T, middle: T, severe: T) -> T:
        """The value for the severity of this plan."""
        return (mild, middle, severe)[self.severity]

    @property
    def steps(self) -> int:
        return int(self.settings["training.total_steps"])

    @property
    def data(self) -> Any:
        """The capsules (or puzzles), to be changed in place."""
        if self.capsules is None:
            self.capsules = self.load()
        return self.capsules

    def wrap(self, owner: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replace `owner.name` by `around` of it while the run trains."""
        self.patches.append(patch.object(owner, name, around(getattr(owner, name))))


@dataclass(frozen=True)
class Fault:
    """`expected`: ids of checks, one of which must be the first finding."""

    name: str
    expected: tuple[str, ...]
    plant: Callable[[Plan], None]


@dataclass(frozen=True)
class Base:
    """A healthy run. `settings` may depend only on the name; `load(seed)` gives its capsules."""

    name: str
    settings: dict[str, Any]
    load: Callable[[int], Capsules | Puzzles]
    source: bool = False  # `settings` say where the data comes from, so that no file has to be written


def begin(base: Base, severity: int, seed: int) -> Plan:
    """A plan with nothing planted."""
    plan = Plan(severity, seed, {**base.settings, "training.seed": seed}, lambda: base.load(seed))
    if not base.source:
        plan.capsules = base.load(seed)
    return plan
