"""What a killed trainer left on disk, and whether it keeps what was promised."""

from __future__ import annotations

import collections
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aim
import tiny

from trm_core.training.checkpoint_folders import MANIFEST, best, list_checkpoints
from trm_core.training.checkpoint_verify import checkpoint_facts
from trm_core.training.run_dir import CHECKPOINTS, EVALUATION, METRICS, STATUS


def promised(logged: int, interval: int) -> int:
    """The earliest step that the newest checkpoint may have after `logged` steps were logged; 0: none yet.

    A save begins right after every `interval` steps, before the next step, is written in the background, and ends
    before the next one begins. So of the saves that began before step `logged` all but the last are complete, and at
    most two intervals are lost: the one since the last save began, and the one that the save may have taken.
    """
    return max(0, (logged - 1) // interval * interval - interval)


@dataclass(frozen=True)
class Remains:
    """One kill: where it hit and what it cost."""

    place: str
    logged: int
    newest: int  # step of the newest checkpoint, 0 if there is none

    @property
    def in_save(self) -> bool:
        return self.place != "outside of saves"


def last_logged(run: Path) -> int:
    """The last step with a complete line in metrics.jsonl."""
    path = run / METRICS
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


def place_of(run: Path, before: aim.Folders, after: aim.Folders, keep: int) -> str:
    """Where in a save the kill hit, judging by what it left behind."""
    for name in after.unfinished.keys() - before.unfinished.keys():
        held = after.unfinished[name]
        return "manifest written, not renamed" if MANIFEST in held else f"{len(held)} files begun"
    if after.pruned - before.pruned:
        return "in pruning"
    newest = max(after.complete - before.complete, default=None)
    if newest is not None:
        manifest = json.loads((run / CHECKPOINTS / newest / MANIFEST).read_text())
        if manifest["best"] and best(run) != run / CHECKPOINTS / newest:
            return "renamed, not marked best"
    surplus = [folder for folder in list_checkpoints(run)[keep:] if folder != best(run)]
    if surplus and newest is not None:
        return "renamed, not pruned"
    return "outside of saves"


def examine(run: Path, before: aim.Folders, interval: int, keep: int) -> Remains:
    """Assert everything that must hold for the checkpoints after any kill."""
    after = aim.folders(run)
    facts = checkpoint_facts(run)
    assert [fact.fault for fact in facts] == [None] * len(facts), "a folder with a manifest verifies"
    assert {fact.path.name for fact in facts} == after.complete
    newest = facts[0].step if facts else 0
    logged = last_logged(run)
    assert newest >= promised(logged, interval), f"{logged} steps were logged, and the newest checkpoint is {newest}"
    assert newest >= max((int(name[5:]) for name in before.complete), default=0), "what was complete stays"
    return Remains(place_of(run, before, after, keep), logged, newest)


def require_sane_status(run: Path, highest: int, *allowed: tuple[str, int | None]) -> None:
    """Check status.json. `allowed`: states and exit codes; `highest`: the last step that any life logged."""
    path = run / STATUS
    if path.exists():  # otherwise killed before the first one was written
        told = json.loads(path.read_text())
        assert (told["state"], told["exit_code"]) in allowed
        assert told["step"] <= highest


def outcome(run: Path) -> dict[str, Any]:
    """Everything that a finished run leaves, except times: equal for equal runs."""
    newest = checkpoint_facts(run)[0].path
    return {
        "files": {path.name for path in run.iterdir() if not path.name.startswith("uncommitted")},
        "checkpoints": {path.name for path in (run / CHECKPOINTS).iterdir()},
        "best": (run / CHECKPOINTS / "best").read_text(),
        "newest": {path.name: path.read_bytes() for path in newest.iterdir()},
        "metrics": tiny.metrics_without_clock(run),
        "scores": json.loads((run / EVALUATION).read_text())["scores"],
        "status": {key: json.loads((run / STATUS).read_text())[key] for key in ("state", "step", "exit_code")},
    }


def told(kills: list[Remains]) -> str:
    places = collections.Counter(kill.place for kill in kills)
    lost = [kill.logged - kill.newest for kill in kills]
    listed = ", ".join(f"{place}: {count}" for place, count in sorted(places.items()))
    inside = sum(kill.in_save for kill in kills)
    return f"{len(kills)} kills, {inside} inside saves ({listed}); at most {max(lost)} steps lost"
