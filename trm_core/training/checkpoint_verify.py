"""Whether checkpoints match their manifests, and the search for the newest one that does."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trm_core.errors import CheckpointError
from trm_core.training.checkpoint_folders import (
    BEST,
    HEALTHY,
    MANIFEST,
    READ_AGAIN,
    SCHEMA_VERSION,
    SHARED,
    UnreadableCheckpoint,
    best,
    files_of_rank,
    fsync,
    is_healthy,
    list_checkpoints,
    read_json,
    step_of,
)


@dataclass(frozen=True)
class CheckpointFacts:
    """What `trm checkpoints` says about one folder."""

    path: Path
    step: int
    bytes: int
    written: float  # seconds since the epoch
    best: bool
    fault: str | None  # None: it verifies


def checkpoint_facts(run: Path, hashed_bytes: float = math.inf) -> list[CheckpointFacts]:
    """Every checkpoint of a run, newest first, each fully verified. The run may be under way. hashed_bytes: after so
    many, only file sizes are compared.
    """
    marked, found = best(run), []
    for folder in list_checkpoints(run):
        fault, written, size = None, 0.0, 0
        try:
            written = (folder / MANIFEST).stat().st_mtime
            size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
            hashes, hashed_bytes = hashed_bytes > 0, hashed_bytes - size  # a damaged one takes as long to hash
            verify(folder, hashes=hashes)
        except CheckpointError as error:
            fault = error.message
        except FileNotFoundError:
            fault = f"{folder} lost a file while it was read"
        if not (folder / MANIFEST).is_file():
            continue  # pruned in the meantime
        found.append(CheckpointFacts(folder, step_of(folder), size, written, folder == marked, fault))
    return found


def find_checkpoint(run: Path, which: str = "latest") -> tuple[Path, list[str]]:
    """The newest checkpoint that verifies (or the newest healthy one, or the best), and a note on each one that was
    passed over. Raises UnreadableCheckpoint for one that may be intact.
    """
    notes: list[str] = []
    if which == BEST:
        chosen = best(run)
        if chosen is None:
            raise CheckpointError(f"{run} has no best checkpoint", hint="use the latest one")
        verify(chosen)
        return chosen, notes
    for folder in list_checkpoints(run):
        try:
            verify(folder)
        except UnreadableCheckpoint:
            raise
        except CheckpointError as error:
            notes.append(f"going back one checkpoint: {error.message}")
            continue
        if which == HEALTHY and not is_healthy(folder):
            notes.append(f"going back one checkpoint: {folder} was saved right after a step that was not finite")
            continue
        return folder, notes
    raise CheckpointError(
        f"{run} has no checkpoint that verifies" + "".join(f"; {note}" for note in notes),
        hint="train it first, or restore the folder from a copy",
    )


def verify(folder: Path, hashes: bool = True) -> None:
    """Compare sizes with the manifest, and hashes too unless `hashes` is false: they take time. Raises CheckpointError
    naming the file: UnreadableCheckpoint if nothing is known to be damaged.
    """
    try:
        _verify(folder, hashes)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} lost a file while it was read", hint="delete the folder") from error
    except OSError as error:
        raise UnreadableCheckpoint(f"{folder} cannot be read: {error.strerror}", hint=READ_AGAIN) from error


def _verify(folder: Path, hashes: bool) -> None:
    manifest = read_json(folder / MANIFEST)
    version = manifest.get("schema_version")
    if version != SCHEMA_VERSION:
        known = isinstance(version, int)
        raise (UnreadableCheckpoint if known else CheckpointError)(
            f"{folder}: schema version {version!r}, but this version of trm reads {SCHEMA_VERSION}",
            hint="use the version of trm that wrote it",
        )
    if manifest.get("step") != step_of(folder):
        raise CheckpointError(
            f"{folder}: its manifest is from step {manifest.get('step')!r:.60}", hint="restore it from a copy"
        )
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"{folder / MANIFEST} lists no files", hint="delete the folder")
    ranks = max((len(files) - len(SHARED)) // 2, 1)
    # No other names are read, so none can lead out of the folder; a list that has any is refused.
    needed = [*SHARED, *(name for rank in range(ranks) for name in files_of_rank(rank))]
    if surplus := sorted(files.keys() - set(needed)):
        raise CheckpointError(f"{folder / MANIFEST} lists {surplus[0]!r}: not written by trm", hint="delete the folder")
    for name in needed:
        expected = files.get(name)
        path = folder / name
        if not isinstance(expected, dict) or not path.is_file():
            raise CheckpointError(f"{path} is missing", hint="restore the folder from a copy, or delete it")
        if path.stat().st_size != expected.get("bytes") or (hashes and describe(path) != expected):
            raise CheckpointError(f"{path} does not match its manifest: it is damaged", hint="delete the folder")


def is_intact(folder: Path) -> bool:
    """Whether it verifies, and is a real folder, not a link."""
    if folder.is_symlink():
        return False
    try:
        verify(folder)
    except CheckpointError:
        return False
    return True


def describe(path: Path, sync: bool = False) -> dict[str, Any]:
    if sync:
        fsync(path)
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
