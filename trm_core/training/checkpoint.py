"""Saving and loading checkpoints: safetensors for every tensor, JSON for the rest, nothing is ever unpickled.

Order is everything: the files go into a temporary folder and are fsynced, the manifest comes last, the folder is
renamed and its parent fsynced. What the folder holds: `checkpoint_folders`.
"""

from __future__ import annotations

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
from trm_core.training.checkpoint_folders import (
    FILES,
    MANIFEST,
    MODEL,
    SCHEMA_VERSION,
    STATE,
    TRAINING,
    describe,
    folder_of,
    fsync,
    read_json,
    remove,
    remove_stale,
)


@dataclass(frozen=True)
class Checkpoint:
    """Everything a checkpoint holds."""

    step: int
    model: dict[str, Tensor]
    training: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint whole or not at all. Raises ResourceError when the disk does not take it."""
    final = folder_of(run, checkpoint.step)
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        final.parent.mkdir(exist_ok=True)
        remove_stale(final.parent)
        temporary.mkdir()
        save_file(_plain(checkpoint.model), temporary / MODEL)
        save_file(_plain(checkpoint.training), temporary / TRAINING)
        (temporary / STATE).write_text(json.dumps(checkpoint.state), encoding="utf-8")
        files = {name: describe(temporary / name, sync=True) for name in FILES}
        manifest = {"schema_version": SCHEMA_VERSION, "step": checkpoint.step, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        fsync(temporary / MANIFEST)
        fsync(temporary)
        if final.exists():
            remove(final)
        temporary.rename(final)
        fsync(final.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ResourceError(
            f"cannot save the checkpoint {final}: {error}", hint="free some disk space and run again with --resume"
        ) from error
    return final


def load_checkpoint(folder: Path, *, with_training: bool = True) -> Checkpoint:
    """Read a verified checkpoint. Raises CheckpointError."""
    state = read_json(folder / STATE)
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


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses tensors that share memory; a clone each is small beside the write itself.
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", hint="delete the folder; an older one is used"
        ) from error
