"""Which states of a run are saved, when a save is concluded, and how to go back to one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trm_core.distributed.collectives import from_first_rank, rank, world_size
from trm_core.errors import CheckpointError, ResourceError
from trm_core.training import checkpoint_folders as folders
from trm_core.training.checkpoint import Checkpoint, load_shared
from trm_core.training.checkpoint_verify import find_checkpoint
from trm_core.training.regroup import regrouped
from trm_core.training.saving import Saver
from trm_core.training.state import TrainingState

Log = Callable[[str], None]


class Keeper:
    """The checkpoints of one run. Every method is called by all ranks together."""

    def __init__(self, run: Path, keep: int, state: TrainingState, about: dict[str, Any]) -> None:
        self.run, self.state, self.about = run, state, about
        self.saver = Saver(run, keep)
        self.best: float | None = None  # accuracy of the best evaluation
        self.best_before: float | None = None  # the previous best, in case saving the new one fails

    def start(self, log: Log, *, best: float | None = None) -> None:
        """Start to save in the middle of a run, after concluding the previous save; at most once per step. best: the
        accuracy, if an evaluation was better than all before.
        """
        if self.saver.step == self.state.step:
            return
        self.conclude(log)
        if best is not None:
            self.best_before, self.best = self.best, best
        self.saver.start(self.checkpoint(), best=best is not None)

    def conclude(self, log: Log) -> None:
        """Wait for the save under way, if there is one. A full disk costs this checkpoint, not the run, and older ones
        stay as they are.
        """
        if self.saver.save is None:
            return
        best = self.saver.save.best
        try:
            self.saver.conclude()
        except ResourceError as error:
            log(f"warning: {error.message}; training goes on, and the next save will be tried as usual ({error.hint})")
            self.best = self.best_before if best else self.best

    def save(self, log: Log) -> None:
        """Save now, and wait for it. Raises ResourceError if it cannot be written."""
        self.conclude(log)
        self.saver.start(self.checkpoint())
        self.saver.conclude()

    def checkpoint(self) -> Checkpoint:
        """Everything that is needed to resume."""
        return self.state.to_checkpoint({**self.about, "best": self.best})

    def any_healthy(self) -> bool:
        """Whether there is a checkpoint to go back to, as rank 0 sees it."""
        return bool(from_first_rank(lambda: any(map(folders.is_healthy, folders.list_checkpoints(self.run)))))

    def newest(self, which: str = "latest") -> tuple[Path, list[str]]:
        """The newest checkpoint that verifies ('healthy': and is healthy), as rank 0 sees it, and notes about the
        search.
        """

        def find() -> tuple[str, list[str]]:
            folder, notes = find_checkpoint(self.run, which)
            return str(folder), notes

        folder, notes = from_first_rank(find)
        return Path(folder), list(notes)

    def load(self, folder: Path) -> tuple[Checkpoint, list[str]]:
        """A verified checkpoint as this rank resumes from it, and notes on what is not exact about that."""
        try:
            own, notes = regrouped(folder, rank(), world_size(), len(self.state.carry.halted))
        except (KeyError, TypeError, RuntimeError, IndexError) as error:
            raise CheckpointError(
                f"{folder}: the rows of its processes do not fit together: {error}", hint="delete the folder"
            ) from error
        return load_shared(folder, own), notes

    def drop_newer(self, folder: Path) -> None:
        """Delete the checkpoints passed over for `folder`, once that one is known to work."""
        from_first_rank(lambda: folders.drop_newer(self.run, folder))

    def resume(self) -> list[str]:
        """Resume from the newest checkpoint that verifies; returns notes about it."""
        folder, notes = self.newest()
        saved, inexact = self.load(folder)
        if saved.state.get("shape") != self.about.get("shape"):
            raise CheckpointError(
                f"{folder} was trained on data of another shape: {saved.state.get('shape')}, "
                f"now {self.about.get('shape')}",
                hint="resume with the data of the run",
            )
        best = saved.state.get("best")
        if not (best is None or isinstance(best, float)):
            raise CheckpointError(f"{folder}: its best accuracy is {best!r:.60}", hint="delete the folder")
        self.state.restore(saved)
        self.drop_newer(folder)
        notes.append(f"resuming from {folder.name} (step {saved.step})")
        now = _evaluated(self.about)
        if best is not None and _evaluated(saved.state) != now:
            notes.append(
                f"from here on evaluated on {now}: the best accuracy so far, {best:.4f}, was measured on other rows"
            )
            best = None
        self.best = best
        return [*notes, *inexact]


def _evaluated(about: dict[str, Any]) -> str | None:
    """What the accuracies of a run are measured on."""
    data = about.get("data")
    found = data.get("eval") if isinstance(data, dict) else None
    return f"{found.get('path')} ({found.get('split')})" if isinstance(found, dict) else None
