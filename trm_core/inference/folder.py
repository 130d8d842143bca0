"""An exported model on disk, in the layout of the Hugging Face Hub: `config.json`, `model.safetensors`, `README.md`.

Weights may be stored in fewer bits than they are computed with: `bfloat16`, or `int8` with one scale per row of a
matrix (`<name>.scale` beside it). They become float32 again when they are read. Nothing is pickled, and every number in
an untrusted `config.json` is checked before memory is allocated for it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from trm_core.config.schema import Config
from trm_core.data.encoding import Encoding
from trm_core.data.preprocessing_folder import DOCUMENT
from trm_core.data.puzzles.meaning import meaning_of_record
from trm_core.errors import CheckpointError
from trm_core.evaluation.load import require_sizes
from trm_core.inference.trained import Trained
from trm_core.model.data_shape import DataShape
from trm_core.model.shapes_only import shapes_only
from trm_core.model.trm import TinyRecursiveModel
from trm_core.training.checkpoint import load_weights, require_weights
from trm_core.training.checkpoint_folders import read_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FORMAT = "trm-capsule-model"
SCHEMA_VERSION = 1
STORED = ("float32", "bfloat16", "int8")
_MOST_CLASSES = 10_000_000


def describe(trained: Trained, stored: str, weights: Path) -> dict[str, Any]:
    """`config.json`: everything that the answers depend on except the weights, and the hash of the weights' file."""
    model = trained.model
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "model_type": "trm",
        "weights": stored,
        "weights_sha256": sha256_of(weights),
        "shape": asdict(model.data),
        "cmi": model.cmi_head is not None,
        "masked": trained.masked,
        "prices": [float(price) for price in trained.prices],
        **({} if trained.encoding is None else trained.encoding.as_record()),
        "class_names": trained.class_names,
        "puzzles": None if trained.puzzles is None else trained.puzzles.as_record(),
        "identifiers": trained.identifiers,
        "config": config_of_model(trained.config),
        "about": trained.about,
    }


def sha256_of(path: Path) -> str:
    """SHA-256 of a file. Raises CheckpointError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", hint="export the run again") from error


def config_of_model(config: Config) -> dict[str, Any]:
    """The config sections from which a model is made, without paths of the machine that trained it."""
    dumped = config.model_dump(mode="json")
    dumped["training"]["run_dir"] = None
    return {name: dumped[name] for name in ("name", "arch", "memory", "dqn", "training")}


def write_weights(path: Path, model: TinyRecursiveModel, stored: str) -> None:
    """The model's tensors as safetensors, in one of `STORED`."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    if stored != "float32":
        tensors = _smaller(tensors, stored)
    path.write_bytes(save(tensors, metadata={"format": "pt"}))


def read_folder(path: Path, device: torch.device) -> Trained:
    """Load an exported model. Raises CheckpointError for a folder that is damaged, too new, or not ours."""
    record = read_json(path / CONFIG)
    if record.get("format") != FORMAT:
        raise CheckpointError(
            f"{path / CONFIG} is not a model exported by trm (format is {record.get('format')!r:.60})",
            hint="make one with: trm export RUN --format safetensors --out FOLDER",
        )
    version = record.get("schema_version")
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise CheckpointError(
            f"{path / CONFIG} has schema version {version!r:.20}; this version of trm reads 1 to {SCHEMA_VERSION}",
            hint="upgrade trm, or export the run again",
        )
    try:
        config, shape = Config.model_validate(record["config"]), DataShape(**record["shape"])
        require_sizes(shape)
        prices = np.asarray(record["prices"], dtype=np.float32)
        names, with_cmi, masked, stored = (record[name] for name in ("class_names", "cmi", "masked", "weights"))
        _require(prices.shape == (shape.num_capsules,), "prices are not one per capsule")
        _require(bool(np.isfinite(prices).all() and (prices > 0).all()), "prices are not all above 0")
        _require(type(with_cmi) is bool and type(masked) is bool, "cmi or masked is neither true nor false")
        promised = record["weights_sha256"]
        _require(stored in STORED, f"weights are {stored!r:.40}")
        _require(shape.num_classes <= _MOST_CLASSES, "too many classes")
        named = names is None or (
            isinstance(names, list) and len(names) == shape.num_classes and all(isinstance(name, str) for name in names)
        )
        _require(named, "class_names are not a text per class")
        sizes = shape.vocab_size, shape.num_capsules
        puzzles = meaning_of_record(record["puzzles"], *sizes) if shape.tokens else None
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise CheckpointError(f"{path / CONFIG} does not describe a model: {_brief(error)}") from error
    if sha256_of(path / WEIGHTS) != promised:
        raise CheckpointError(
            f"{path / WEIGHTS} is damaged: its sha256 is not the one in {CONFIG}", hint="export the run again"
        )
    weights = read_weights(path / WEIGHTS)
    with shapes_only():  # sizes that the weights do not have must not be allocated
        expected = TinyRecursiveModel(config, shape, with_cmi=with_cmi).state_dict()
    require_weights(expected, weights, path / WEIGHTS)
    model = TinyRecursiveModel(config, shape, with_cmi=with_cmi)
    load_weights(model, weights, path / WEIGHTS)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    about = record.get("about")
    encoder = path if (path / DOCUMENT).is_file() else None
    about = about if isinstance(about, dict) else {}
    encoding = Encoding.of_record(record)
    known = record.get("identifiers")
    return Trained(
        model.to(device).eval(), config, prices, names, masked, path, about, encoder, puzzles, known, encoding
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights as float32, however they are stored."""
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file", hint="export the run again") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", hint="export the run again") from error
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(".scale") and name[: -len(".scale")] in tensors:
            continue
        if tensor.dtype == torch.int8:
            scale = tensors.get(f"{name}.scale")
            if scale is None or scale.shape != (*tensor.shape[:1], *(1,) * (tensor.dim() - 1)):
                raise CheckpointError(f"{path}: {name} has no scale", hint="export the run again")
            tensor = tensor.float() * scale.float()
        elif tensor.dtype == torch.bfloat16:
            tensor = tensor.float()
        found[name] = tensor
    return found


def _smaller(tensors: dict[str, Tensor], stored: str) -> dict[str, Tensor]:
    """Reduces matrices only: vectors are small, and buffers such as counters must stay exact."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.dim() < 2:
            found[name] = tensor
        elif stored == "bfloat16":
            found[name] = tensor.bfloat16()
        else:
            flat = tensor.flatten(1)
            scale = (flat.abs().amax(1) / 127.0).clamp(min=1e-12).view(-1, *(1,) * (tensor.dim() - 1))
            found[name] = (tensor / scale).round().clamp(-127, 127).to(torch.int8)
            found[f"{name}.scale"] = scale
    return found


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _brief(error: Exception) -> str:
    return json.dumps(str(error).splitlines()[0][:200])[1:-1]
