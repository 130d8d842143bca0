"""Checkpoints: safetensors for every tensor, JSON for the rest, a manifest with hashes written last.

A checkpoint is a folder `step_<n>` with

    model.safetensors      the weights to use (averaged ones where training keeps an average)
    training.safetensors   what only training needs: raw weights, optimisers, carry, replay, target network, RNG
    state.json             numbers: step, data position, schedule, and how to rebuild the model
    manifest.json          size and sha256 of the others

Order is everything: the files go into a temporary folder and are fsynced, the manifest comes last, the folder is
renamed and its parent fsynced; pruning deletes the manifest first. So a folder with a manifest that verifies is
complete, whatever was killed when. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trm_core.errors import CheckpointError, ResourceError
from trm_core.training.run_dir import CHECKPOINTS, write_atomic

SCHEMA_VERSION = 1
MODEL, TRAINING, STATE, MANIFEST = "model.safetensors", "training.safetensors", "state.json", "manifest.json"
BEST = "best"
_FILES = (MODEL, TRAINING, STATE)
_PREFIX = "step_"
_JSON_LIMIT = 16 << 20


@dataclass(frozen=True)
class Checkpoint:
    """Everything a checkpoint holds."""

    step: int
    model: dict[str, Tensor]
    training: dict[str, Tensor]
    state: dict[str, Any]


def folder_of(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"{_PREFIX}{step:08d}"


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint whole or not at all. Raises ResourceError when the disk does not take it."""
    final = folder_of(run, checkpoint.step)
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        final.parent.mkdir(exist_ok=True)
        _remove_stale(final.parent)
        temporary.mkdir()
        save_file(_plain(checkpoint.model), temporary / MODEL)
        save_file(_plain(checkpoint.training), temporary / TRAINING)
        (temporary / STATE).write_text(json.dumps(checkpoint.state), encoding="utf-8")
        files = {name: _describe(temporary / name, sync=True) for name in _FILES}
        manifest = {"schema_version": SCHEMA_VERSION, "step": checkpoint.step, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        _fsync(temporary / MANIFEST)
        _fsync(temporary)
        if final.exists():
            _remove(final)
        temporary.rename(final)
        _fsync(final.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ResourceError(
            f"cannot save the checkpoint {final}: {error}", hint="free some disk space and run again with --resume"
        ) from error
    return final


def mark_best(run: Path, step: int) -> None:
    """Note which checkpoint evaluated best."""
    write_atomic(run / CHECKPOINTS / BEST, f"{folder_of(run, step).name}\n")


def best(run: Path) -> Path | None:
    """The checkpoint marked best, if there is one."""
    pointer = run / CHECKPOINTS / BEST
    if not pointer.is_file():
        return None
    name = pointer.read_text(encoding="utf-8", errors="replace").strip()
    return run / CHECKPOINTS / name if _is_checkpoint_name(name) else None


def list_checkpoints(run: Path) -> list[Path]:
    """Folders that have a manifest, newest first."""
    parent = run / CHECKPOINTS
    if not parent.is_dir():
        return []
    found = [p for p in parent.iterdir() if _is_checkpoint_name(p.name) and (p / MANIFEST).is_file()]
    return sorted(found, key=lambda p: p.name, reverse=True)


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best one."""
    spared = best(run)
    for folder in list_checkpoints(run)[keep:]:
        if folder != spared:
            _remove(folder)


def drop_newer(run: Path, folder: Path) -> None:
    """Delete what is newer than `folder`: damaged, and in the way of what resuming from it will write."""
    for other in list_checkpoints(run):
        if other.name > folder.name:
            _remove(other)


def find_checkpoint(run: Path, which: str = "latest") -> tuple[Path, list[str]]:
    """The newest checkpoint that verifies (or the best one), and a note for every one that was passed over."""
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
        except CheckpointError as error:
            notes.append(f"going back one checkpoint: {error.message}")
            continue
        except OSError as error:
            notes.append(f"going back one checkpoint: {folder} cannot be read ({error.strerror})")
            continue
        return folder, notes
    raise CheckpointError(
        f"{run} has no checkpoint that verifies" + "".join(f"; {note}" for note in notes),
        hint="train it first, or restore the folder from a copy",
    )


def verify(folder: Path) -> None:
    """Compare sizes and hashes with the manifest. Raises CheckpointError that names the file."""
    manifest = _read_json(folder / MANIFEST)
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{folder}: schema version {manifest.get('schema_version')!r}, this version of trm reads {SCHEMA_VERSION}",
            hint="use the version of trm that wrote it",
        )
    files = manifest.get("files")
    for name in _FILES:
        expected = files.get(name) if isinstance(files, dict) else None
        path = folder / name
        if not isinstance(expected, dict) or not path.is_file():
            raise CheckpointError(f"{path} is missing", hint="restore the folder from a copy, or delete it")
        if path.stat().st_size != expected.get("bytes") or _describe(path) != expected:
            raise CheckpointError(f"{path} does not match its manifest: it is damaged", hint="delete the folder")


def load_checkpoint(folder: Path, *, with_training: bool = True) -> Checkpoint:
    """Read a verified checkpoint. Raises CheckpointError."""
    state = _read_json(folder / STATE)
    if not isinstance(state.get("step"), int):
        raise CheckpointError(f"{folder / STATE}: no step")
    training = _load_tensors(folder / TRAINING) if with_training else {}
    return Checkpoint(state["step"], _load_tensors(folder / MODEL), training, state)


def load_weights(model: torch.nn.Module, weights: dict[str, Tensor], source: Path | str) -> None:
    """Load weights by name. Raises CheckpointError that names what is missing, surplus or of another shape."""
    own = model.state_dict()
    missing, surplus = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    misfits = [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & weights.keys()
        if weights[name].shape != own[name].shape
    ]
    if missing or surplus or misfits:
        parts = [f"missing {missing[:3]}"] * bool(missing) + [f"surplus {surplus[:3]}"] * bool(surplus) + misfits[:3]
        raise CheckpointError(
            f"{source} does not fit this model: {'; '.join(parts)}", hint="use the config the run was trained with"
        )
    model.load_state_dict(weights)


def _is_checkpoint_name(name: str) -> bool:
    return name.startswith(_PREFIX) and name[len(_PREFIX) :].isdigit()


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses tensors that share memory; a clone each is small beside the write itself.
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _describe(path: Path, sync: bool = False) -> dict[str, Any]:
    if sync:
        _fsync(path)
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(parent: Path) -> None:
    """Folders that a killed save left behind; the run directory's lock means that nobody else is saving."""
    for folder in parent.glob(f".{_PREFIX}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise CheckpointError(f"{path} is larger than {_JSON_LIMIT} bytes: not written by trm")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", hint="delete the folder; an older one is used"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", hint="delete the folder; an older one is used"
        ) from error
