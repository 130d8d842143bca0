"""The folders of checkpoints: names, marks, retention. `checkpoint_verify` checks what is in them. Neither module
reads a tensor or imports torch.

A checkpoint is a folder `step_<n>` with

    model.safetensors      the weights to use (averaged ones where training keeps an average)
    training.safetensors   what only training needs, shared by all processes: raw weights, optimisers, target network
    state.json             numbers: step, data position, reward scales, faults, and how to rebuild the model
    rank<r>.safetensors    what belongs to process r: carry, replay, random generators
    rank<r>.json           its numbers
    manifest.json          size and sha256 of the others, and whether it was the best so far

A folder of that name is always complete, whatever was killed when: it gets the name once everything is written
(`checkpoint.complete`), and loses it before it is deleted. `best` names the checkpoint that evaluated best; its
manifest says so too, because a kill can come between the two.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from trm_core.errors import CheckpointError
from trm_core.training.run_dir import CHECKPOINTS, remove_halves, write_atomic

SCHEMA_VERSION = 2
MODEL, TRAINING, STATE, MANIFEST = "model.safetensors", "training.safetensors", "state.json", "manifest.json"
SHARED = (MODEL, TRAINING, STATE)
BEST, HEALTHY = "best", "healthy"
PREFIX = "step_"
_JSON_LIMIT = 16 << 20
_JSON_LEVELS = 20  # deeper values cannot even be shown in a message
READ_AGAIN = "try again; if this persists, delete the folder: an older one will be used"


class UnreadableCheckpoint(CheckpointError):
    """It may be intact: the disk failed to read it, or another version of trm wrote it. No reason to delete it."""


def files_of_rank(rank: int) -> tuple[str, str]:
    return f"rank{rank}.safetensors", f"rank{rank}.json"


def ranks_in(folder: Path) -> int:
    """How many processes wrote a checkpoint that verifies."""
    return (len(read_json(folder / MANIFEST)["files"]) - len(SHARED)) // 2


def folder_of(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"{PREFIX}{step:08d}"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(PREFIX))


def mark_best(run: Path, step: int) -> None:
    """Note which checkpoint evaluated best."""
    write_atomic(run / CHECKPOINTS / BEST, f"{folder_of(run, step).name}\n")


def catch_up_best(run: Path) -> None:
    """Mark the best checkpoint if its process was killed after saving it and before marking it."""
    for folder in list_checkpoints(run):
        if calls_itself_best(folder):
            if folder != best(run):
                mark_best(run, step_of(folder))
            return


def calls_itself_best(folder: Path) -> bool:
    try:
        return read_json(folder / MANIFEST).get("best") is True
    except CheckpointError:
        return False


def best(run: Path) -> Path | None:
    """The checkpoint marked best, if there is one."""
    pointer = run / CHECKPOINTS / BEST
    if not pointer.is_file():
        return None
    name = pointer.read_text(encoding="utf-8", errors="replace").strip()
    return run / CHECKPOINTS / name if is_checkpoint_name(name) else None


def list_checkpoints(run: Path) -> list[Path]:
    """Folders that have a manifest, newest first."""
    parent = run / CHECKPOINTS
    if not parent.is_dir():
        return []
    found = [p for p in parent.iterdir() if is_checkpoint_name(p.name) and (p / MANIFEST).is_file()]
    return sorted(found, key=lambda p: p.name, reverse=True)


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, the best one, and the one that a rollback would take."""
    found = list_checkpoints(run)
    spared = (best(run), next(filter(is_healthy, found), None))
    for folder in found[keep:]:
        if folder not in spared:
            remove(folder)


def is_healthy(folder: Path) -> bool:
    """Whether it was saved after a finite step: one that was saved among faults may contain their cause."""
    try:
        faults = read_json(folder / STATE).get("faults")
    except CheckpointError:
        return False
    return not isinstance(faults, dict) or not faults.get("in_a_row")


def drop_newer(run: Path, folder: Path) -> None:
    """Delete the checkpoints newer than `folder` that were passed over: they are in the way of those that a run
    continued from `folder` will write.
    """
    for other in list_checkpoints(run):
        if other.name > folder.name:
            remove(other)


def is_checkpoint_name(name: str) -> bool:
    number = name[len(PREFIX) :]
    return name.startswith(PREFIX) and number.isascii() and number.isdigit()


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(folder: Path) -> None:
    shutil.rmtree(set_aside(folder), ignore_errors=True)


def set_aside(folder: Path) -> Path:
    """Rename it to something that is not a checkpoint's name, so that leftovers of a killed deletion are not taken for
    one and are removed later; returns the new path.
    """
    half = folder.with_name(f".{folder.name}.pruned")
    if folder.is_symlink():  # its target is not the run's to delete
        folder.unlink()
        return half
    shutil.rmtree(half, ignore_errors=True)
    folder.rename(half)
    return half


def unfinished(run: Path, step: int, token: str) -> Path:
    """Where a checkpoint is written until it is complete. `token` identifies this start of the run."""
    final = folder_of(run, step)
    return final.with_name(f".{final.name}.{token}")


def remove_stale(run: Path, spared: Path) -> None:
    """Remove what a killed save left behind. The lock of the run directory ensures that nobody else is saving."""
    remove_halves(run / CHECKPOINTS, BEST)
    for folder in (run / CHECKPOINTS).glob(f".{PREFIX}*"):
        if folder != spared:
            shutil.rmtree(folder, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise CheckpointError(f"{path} is larger than {_JSON_LIMIT} bytes: not written by trm")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", hint="delete the folder; an older one will be used"
        ) from error
    except OSError as error:
        raise UnreadableCheckpoint(f"{path} cannot be read: {error.strerror}", hint=READ_AGAIN) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    if _nested_deeper(value, _JSON_LEVELS):
        raise CheckpointError(f"{path} is nested more than {_JSON_LEVELS} levels deep: not written by trm")
    return value


def _nested_deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_nested_deeper(item, levels - 1) for item in inner)
