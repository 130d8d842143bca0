"""A run directory -> a model ready for evaluation, and the record of the data it was trained and evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trm_core.config.schema import Config
from trm_core.errors import CheckpointError
from trm_core.evaluation.overrides import OF_AN_EVALUATION, overridden
from trm_core.model.data_shape import DataShape
from trm_core.model.shapes_only import shapes_only
from trm_core.model.trm import TinyRecursiveModel
from trm_core.training.checkpoint import load_model, load_weights, require_weights
from trm_core.training.checkpoint_folders import MODEL, STATE
from trm_core.training.checkpoint_verify import find_checkpoint
from trm_core.training.run_dir import CONFIG, require_run

_EXPORTED = "config.json"


@dataclass(frozen=True)
class TrainedRun:
    """A run's model with the weights that are meant to be used."""

    path: Path
    config: Config
    model: TinyRecursiveModel
    step: int
    data: dict[str, Any]  # `dataset.json`: paths, split, hashes
    notes: list[str]
    changed: list[str]  # what overrides change of what it was trained with, as text; also among the notes


def load_run(
    path: Path,
    device: torch.device,
    which: str = "latest",
    overrides: Sequence[str] = (),
    may_differ: Sequence[str] = OF_AN_EVALUATION,
) -> TrainedRun:
    """Load the newest checkpoint that verifies (or `best`). Raises CheckpointError, and ConfigError for overrides of
    other settings than `may_differ`.
    """
    if (path / _EXPORTED).is_file() and not (path / CONFIG).is_file():
        raise CheckpointError(
            f"{path} is an exported folder, not a run directory",
            hint=f"trm predict FILE --model {path} answers with it, and says its accuracy where FILE has labels",
        )
    require_run(path)
    config, changed = overridden(path, overrides, may_differ)
    folder, notes = find_checkpoint(path, which)
    step, weights, state = load_model(folder)
    try:
        shape = DataShape(**state["shape"])
        data, with_cmi = state["data"], bool(state["cmi"])
        require_sizes(shape)
        require_texts(data["eval"], ("path", "split"))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}/{STATE} does not describe its model: {error}") from error
    with shapes_only():  # sizes that the weights do not have must not be allocated
        expected = TinyRecursiveModel(config, shape, with_cmi=with_cmi).state_dict()
    require_weights(expected, weights, folder / MODEL)
    model = TinyRecursiveModel(config, shape, with_cmi=with_cmi)
    load_weights(model, weights, folder / MODEL)
    return TrainedRun(path, config, model.to(device).eval(), step, data, [*notes, *changed], changed)


def require_sizes(shape: DataShape) -> None:
    """Raise ValueError for sizes that no data has: the numbers come from a file."""
    for name, value in vars(shape).items():
        whole = type(value) is int and 0 <= value < 2**31
        if not (isinstance(value, (bool, float)) if name in ("has_parents", "total_price") else whole):
            raise ValueError(f"shape: {name} is {value!r:.60}")


def require_texts(record: dict[str, Any], names: tuple[str, ...]) -> None:
    """Raise ValueError, TypeError or KeyError unless these entries exist and are texts."""
    for name in names:
        if not isinstance(record[name], str):
            raise ValueError(f"{name} is {record[name]!r:.60}")
