"""Loads a trained model from a run directory, or from a folder that `trm export` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trm_core.data.encoding import Encoding
from trm_core.data.puzzles.meaning import guessed, meaning_of_record
from trm_core.data.store import open_capsules
from trm_core.devices import pick_device
from trm_core.errors import CheckpointError, DataError
from trm_core.evaluation.load import TrainedRun, load_run
from trm_core.evaluation.overrides import OF_A_MODEL
from trm_core.inference.folder import CONFIG, read_folder
from trm_core.inference.trained import Trained


def load_trained(
    path: Path, device: str = "auto", checkpoint: str = "latest", overrides: Sequence[str] = ()
) -> Trained:
    """Load the model at `path`; overrides are of a run's config. Raises CheckpointError, ConfigError, DataError or
    UsageError.
    """
    place, _ = pick_device(device)
    if (path / CONFIG).is_file():
        return read_folder(path, place)
    return of_run(load_run(path, place, checkpoint, overrides, OF_A_MODEL))


def of_run(run: TrainedRun) -> Trained:
    """A run as a model that answers. Prices and class names come from the run's capsule file; puzzles need no data."""
    if run.model.data.tokens:
        return _of_puzzle_run(run)
    recorded = Path(run.data["eval"]["path"])
    try:
        file = open_capsules(recorded)
    except DataError as error:
        raise CheckpointError(
            f"{run.path} was trained with {error.message}",
            hint="put the capsule file back, or use a folder that trm export wrote, which needs none",
        ) from error
    names = file.manifest.get("class_names")
    about = {
        "step": run.step,
        "data": str(recorded),
        "split": run.data["eval"]["split"],
        "kind": file.manifest.get("kind"),
        **_changed(run),
    }
    prices, masked = file.prices, file.has("mask")
    encoding = Encoding.of(file.manifest)
    file.close()
    if len(prices) != run.model.data.num_capsules:
        raise CheckpointError(f"{recorded} has {len(prices)} capsules, the model {run.model.data.num_capsules}")
    model = run.model
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    class_names = names if isinstance(names, list) else None
    return Trained(
        model, run.config, prices, class_names, masked, run.path, about, recorded, encoding=encoding, notes=run.notes
    )


def _of_puzzle_run(run: TrainedRun) -> Trained:
    shape, record = run.model.data, run.data.get("puzzles")
    try:
        sizes = shape.vocab_size, shape.num_capsules
        puzzles = guessed(*sizes) if record is None else meaning_of_record(record, *sizes)
    except ValueError as error:
        raise CheckpointError(f"{run.path} does not describe its {error}") from error
    about = {
        "step": run.step,
        "data": run.data["eval"]["path"],
        "split": run.data["eval"]["split"],
        "kind": f"puzzles: {puzzles.kind}",
        **_changed(run),
    }
    for parameter in run.model.parameters():
        parameter.requires_grad_(False)
    prices = np.ones(shape.num_capsules, np.float32)
    known = run.data.get("identifiers")
    return Trained(
        run.model, run.config, prices, None, False, run.path, about, puzzles=puzzles, identifiers=known, notes=run.notes
    )


def _changed(run: TrainedRun) -> dict[str, list[str]]:
    return {"changed": run.changed} if run.changed else {}
