"""What is in a checkpoint, and its way to the disk and back: safetensors for every tensor, JSON for the rest; nothing
is ever unpickled.

The order matters: every process writes and fsyncs its files in a temporary folder, the manifest is written last, then
the folder is renamed and its parent fsynced. Who does what when: `saving`. What the folder holds: `checkpoint_folders`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trm_core.data.store.partial import fsync_folder
from trm_core.errors import CheckpointError
from trm_core.training.checkpoint_folders import (
    MANIFEST,
    MODEL,
    SCHEMA_VERSION,
    STATE,
    TRAINING,
    calls_itself_best,
    files_of_rank,
    folder_of,
    fsync,
    read_json,
    set_aside,
    step_of,
)
from trm_core.training.checkpoint_verify import describe, is_intact

Files = dict[str, dict[str, Any]]  # name -> size and hash


@dataclass(frozen=True)
class OwnState:
    """The part of the state that differs between processes, for one of them."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """Everything a checkpoint holds, as one process writes or reads it."""

    step: int
    model: dict[str, Tensor]
    training: dict[str, Tensor]
    state: dict[str, Any]
    own: OwnState
    folder: Path | None = None  # where it was read from


def snapshot(checkpoint: Checkpoint, rank: int) -> Checkpoint:
    """A copy in host memory that training no longer changes. Ranks other than 0 leave out the shared part."""
    first = rank == 0
    return Checkpoint(
        checkpoint.step,
        _copied(checkpoint.model) if first else {},
        _copied(checkpoint.training) if first else {},
        json.loads(json.dumps(checkpoint.state)) if first else {},
        OwnState(_copied(checkpoint.own.tensors), json.loads(json.dumps(checkpoint.own.numbers))),
    )


def write_part(folder: Path, part: Checkpoint, rank: int) -> Files:
    """Write and fsync this rank's files (rank 0: the shared ones too). Raises OSError or SafetensorError."""
    tensors, numbers = files_of_rank(rank)
    files = {tensors: part.own.tensors, numbers: part.own.numbers}
    if rank == 0:
        files |= {MODEL: part.model, TRAINING: part.training, STATE: part.state}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if name.endswith(".json"):
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
        else:
            save_file(content, folder / name)
            # Some versions of safetensors create files that only their owner may read, whatever the umask.
            (folder / name).chmod(folder.stat().st_mode & 0o666)
    return {name: describe(folder / name, sync=True) for name in files}


def complete(run: Path, step: int, folder: Path, files: Files, *, best: bool = False) -> Path:
    """Make `folder`, which holds the `files` of all ranks, the checkpoint of `step`. best: it is the best so far.
    Raises OSError.

    An intact checkpoint of that step is kept instead, because replacing it would mean being without it for a moment;
    unless training has rolled back since, which must be recorded.
    """
    final = folder_of(run, step)
    if is_intact(final) and _faults(final) == _faults(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return final
    best = best or calls_itself_best(final)
    manifest = {"schema_version": SCHEMA_VERSION, "step": step, "best": best, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    fsync(folder / MANIFEST)
    fsync_folder(folder)
    replaced = set_aside(final) if final.exists() else None
    folder.rename(final)
    fsync_folder(final.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)
    return final


def _faults(folder: Path) -> Any:
    """The saved record of steps that were not finite (`trm_core.training.faults.Faults`)."""
    return read_json(folder / STATE).get("faults")


def load_shared(folder: Path, own: OwnState) -> Checkpoint:
    """Read the shared part of a verified checkpoint, to go with a process's own. Raises CheckpointError."""
    step, model, state = load_model(folder)
    # Optimisers keep the tensors they are given, and these are mapped from the file: its disk may go away, and would
    # go on holding a pruned checkpoint.
    training = _copied(_load_tensors(folder / TRAINING))
    return Checkpoint(step, model, training, state, own, folder)


def load_model(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """(step, weights to use, state.json) of a verified checkpoint. Raises CheckpointError."""
    state = read_json(folder / STATE)
    if state.get("step") != step_of(folder):
        raise CheckpointError(f"{folder / STATE} is from step {state.get('step')!r:.60}", hint="delete the folder")
    return step_of(folder), _load_tensors(folder / MODEL), state


def load_own(folder: Path, rank: int) -> OwnState:
    """The part of process `rank`. Raises CheckpointError."""
    tensors, numbers = files_of_rank(rank)
    return OwnState(_load_tensors(folder / tensors), read_json(folder / numbers))


def load_weights(model: torch.nn.Module, weights: dict[str, Tensor], source: Path | str) -> None:
    """Load weights by name. Raises CheckpointError naming those that are missing, surplus or of another shape."""
    require_weights(model.state_dict(), weights, source)
    model.load_state_dict(one_value_each(model, weights))


def one_value_each(model: torch.nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights, with the value of its first name under all names of a parameter: checkpoints of tied networks used
    to be written with averaged weights under the first name and raw ones under the other.
    """
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}
    return {name: weights.get(names.get(name, name), value) for name, value in weights.items()}


def require_weights(own: dict[str, Tensor], weights: dict[str, Tensor], source: Path | str) -> None:
    """Raises CheckpointError unless `weights` have the names, shapes and dtypes of `own`. Values are not checked."""
    missing, surplus = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    misfits = [
        f"{name} is {_kind(weights[name])}, not {_kind(own[name])}"
        for name in sorted(own.keys() & weights.keys())
        if (weights[name].shape, weights[name].dtype) != (own[name].shape, own[name].dtype)
    ]
    if missing or surplus or misfits:
        parts = [f"missing {missing[:3]}"] * bool(missing) + [f"surplus {surplus[:3]}"] * bool(surplus) + misfits[:3]
        raise CheckpointError(
            f"{source} does not fit this model: {'; '.join(parts)}", hint="use the config the run was trained with"
        )


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # Contiguous, each with memory of its own: safetensors refuses tensors that share memory.
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach()) for name, tensor in tensors.items()
    }


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", hint="delete the folder; an older one will be used"
        ) from error
