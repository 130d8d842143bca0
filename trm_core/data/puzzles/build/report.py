"""The outcome of a puzzle build: returned by the builders, printed by the CLI."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SplitCounts:
    """A group is an original puzzle with its augmented copies; a puzzle has one example or (ARC) several."""

    groups: int
    puzzles: int
    examples: int


@dataclass(frozen=True)
class BuiltPuzzles:
    """Facts about a folder that was written; `notes` are whole sentences for the user."""

    path: Path
    kind: str
    splits: dict[str, SplitCounts]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path), "notes": list(self.notes)}
