"""Saving during training: the state is copied between two steps, and a thread writes the copy while training goes on.

Every process writes its own files into one folder. Once all are done, which they tell each other between two steps,
rank 0 completes the checkpoint (`conclude`). A full disk costs this checkpoint, never an older one.
"""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from safetensors import SafetensorError

from trm_core.distributed.collectives import json_of_each_rank, of_first_rank, rank
from trm_core.errors import CheckpointError, ResourceError
from trm_core.training import checkpoint_folders as folders
from trm_core.training.checkpoint import Checkpoint, Files, complete, snapshot, write_part


@dataclass
class Save:
    """One checkpoint on its way to the disk."""

    step: int
    best: bool
    folder: Path
    files: Files | None = None  # of this rank, once written
    error: str | None = None

    def write(self, part: Checkpoint) -> None:
        try:
            self.files = write_part(self.folder, part, rank())
        except (OSError, SafetensorError) as error:
            self.error = str(error)


class Saver:
    """Writes checkpoints of one run, one at a time. All methods but `finished` are called by all ranks together."""

    def __init__(self, run: Path, keep: int) -> None:
        self.run, self.keep = run, keep
        self.token: str = of_first_rank(uuid.uuid4().hex[:12])
        self.save: Save | None = None
        self.thread: Thread | None = None

    @property
    def step(self) -> int | None:
        """The step of the checkpoint that is being written."""
        return None if self.save is None else self.save.step

    @property
    def finished(self) -> bool:
        """Whether this rank has written its part of the checkpoint under way."""
        return self.thread is not None and not self.thread.is_alive()

    def start(self, checkpoint: Checkpoint, *, best: bool = False) -> None:
        """Copy the state and write it in the background. The previous save must be concluded."""
        assert self.save is None, f"the save of step {self.step} is not finished"
        folder = folders.unfinished(self.run, checkpoint.step, self.token)
        if rank() == 0:
            folders.remove_stale(self.run, spared=folder)
        self.save = Save(checkpoint.step, best, folder)
        self.thread = Thread(target=self.save.write, args=(snapshot(checkpoint, rank()),), name="checkpoint")
        self.thread.start()

    def conclude(self) -> Save:
        """Wait until all ranks have written, and complete the checkpoint. Raises ResourceError if a write failed; the
        save is over then too.
        """
        save, thread = self.save, self.thread
        assert save is not None
        assert thread is not None
        thread.join()
        self.save = self.thread = None
        parts: list[dict[str, Any]] = json_of_each_rank({"files": save.files, "error": save.error})
        error = next((part["error"] for part in parts if part["error"] is not None), None)
        if rank() == 0 and error is None:
            error = self._complete(save, {name: file for part in parts for name, file in part["files"].items()})
        error = of_first_rank(error)
        if error is not None:
            if rank() == 0:
                shutil.rmtree(save.folder, ignore_errors=True)
            raise ResourceError(
                f"cannot save the checkpoint {folders.folder_of(self.run, save.step)}: {error}",
                hint="free some disk space and run again with --resume",
            )
        return save

    def _complete(self, save: Save, files: Files) -> str | None:
        try:
            complete(self.run, save.step, save.folder, files, best=save.best)
            if save.best:
                folders.mark_best(self.run, save.step)
            else:
                folders.catch_up_best(self.run)
            folders.prune(self.run, self.keep)
        except OSError as error:
            return str(error)
        except (ResourceError, CheckpointError) as error:
            return error.message
        return None
