"""Where a run is written: a new folder, or that of a run to resume."""

from __future__ import annotations

from pathlib import Path

from trm_core.config.schema import Config
from trm_core.errors import UsageError
from trm_core.training.checkpoint_folders import list_checkpoints
from trm_core.training.run_dir import CONFIG, LOCK, LOG, new_run_path, require_run


def choose_run_path(config: Config, resume: str | None) -> tuple[Path, bool]:
    """The run directory, and whether it holds something to resume. Raises UsageError."""
    asked = config.training.run_dir
    if resume not in (None, "auto"):
        return require_run(Path(str(resume))), True
    if asked is None:
        if resume == "auto":
            raise UsageError("--resume auto needs training.run_dir", hint="training.run_dir=runs/NAME")
        return new_run_path(config.name), False
    path = Path(asked)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, not a folder", hint="choose another training.run_dir")
    going_on = resume == "auto" and bool(list_checkpoints(path))
    # A run killed before its first checkpoint starts over; a folder that is not a run's is left alone.
    begun = resume == "auto" and (path / CONFIG).is_file()
    if not begun and path.is_dir() and any(entry.name not in (LOCK, LOG) for entry in path.iterdir()):
        raise UsageError(
            f"{path} is not empty", hint=f"resume it with --resume {path}, or choose another training.run_dir"
        )
    return path, going_on
