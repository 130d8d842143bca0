"""A run before its first step: config -> data -> what the run will do, and on which device.

Callers (the CLI, a notebook) pass in hooks for progress and messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trm_core.config import LoadedConfig
from trm_core.config.aliases import without_effect
from trm_core.config.load import DEFAULT, load_recorded
from trm_core.config.schema import Config, LossWeights, WeightedPath
from trm_core.data.dataset import Dataset, open_dataset, require_mixable, rows_per_epoch
from trm_core.data.encoding import Encoding
from trm_core.data.puzzles.identifiers import identifiers_record, numbered_as_trained, numbered_together
from trm_core.data.puzzles.meaning import meaning_of
from trm_core.data.puzzles.reader import PuzzleData
from trm_core.data.sound import require_checksums
from trm_core.data.source import ensure_built
from trm_core.devices import pick_device, reduced_precision
from trm_core.distributed.place import Place
from trm_core.errors import ConfigError, DataError, UsageError
from trm_core.evaluation.report import EvaluationData, pick_split
from trm_core.model.shapes_only import shapes_only
from trm_core.model.trm import TinyRecursiveModel
from trm_core.optim.freeze import require_more_than_exceptions
from trm_core.training.checkpoint_folders import list_checkpoints, step_of
from trm_core.training.drift import refuse_drift
from trm_core.training.estimate import MemoryEstimate, estimate_memory
from trm_core.training.features import Features, resolve_features, resolved
from trm_core.training.initial_weights import read_initial
from trm_core.training.run_dir import CONFIG
from trm_core.training.run_path import choose_run_path


@dataclass(frozen=True)
class RunHooks:
    """What a run tells its caller."""

    log: Callable[[str], None] = lambda message: None
    on_step: Callable[[int, dict[str, float]], None] = lambda step, values: None
    on_build: Callable[[str, int, int], None] | None = None  # stage, done, total


@dataclass(frozen=True)
class Prepared:
    """A run before its first step."""

    config: Config
    features: Features
    files: list[tuple[Dataset, float]]
    evaluation: EvaluationData
    split_reason: str
    device: torch.device
    notes: list[str]

    @property
    def puzzles(self) -> list[PuzzleData]:
        """The folders that are trained on, if they hold puzzles."""
        return [file for file, _ in self.files if isinstance(file, PuzzleData)]

    def describe_data(self) -> dict[str, Any]:
        """The content of `dataset.json`."""
        first = self.files[0][0]
        shown: dict[str, Any] = {}
        if isinstance(first, PuzzleData):
            shown["puzzles"] = meaning_of(first).as_record()
            if self.config.arch.puzzle_emb_ndim:
                shown["identifiers"] = identifiers_record(self.puzzles)
        else:
            shown["prices"] = first.prices.tolist()
            shown["masked"] = any(file.has("mask") for file, _ in self.files)
        return {
            "train": [
                {
                    "path": str(file.path),
                    "weight": weight,
                    "rows": file.rows,
                    "kind": file.manifest.get("kind"),
                    **Encoding.of(file.manifest).as_record(),
                    "task": file.task,
                }
                for file, weight in self.files
            ],
            "eval": {"path": str(self.evaluation.file.path), "split": self.evaluation.split, "why": self.split_reason},
            **shown,
        }


@dataclass(frozen=True)
class DryRun:
    """Everything up to the first step."""

    prepared: Prepared
    parameters: int
    steps_per_epoch: float  # a lower bound: a row that goes on thinking takes no new sample
    processes: int

    def memory(self) -> MemoryEstimate:
        """What training will take. Computed only now, as it takes some seconds."""
        features, device = self.prepared.features, self.prepared.device.type
        return estimate_memory(self.prepared.config, features, device, self.processes)


def prepare(config: Config, hooks: RunHooks, place: Place | None = None) -> Prepared:
    """Build or open the data and settle what the run will do. Raises ConfigError or DataError."""
    place, data = place or Place(), config.data
    batch, parts = config.training.global_batch_size, config.training.accumulation_steps
    if batch % (place.world_size * parts):
        among = f"{place.world_size} processes" + (f" with training.accumulation_steps={parts}" if parts > 1 else "")
        raise ConfigError(
            f"training.global_batch_size={batch} cannot be divided evenly among {among}",
            hint=f"training.global_batch_size={-(-batch // (place.world_size * parts)) * place.world_size * parts}",
        )
    notes: list[str] = []
    if data.source is not None:
        entries = [(str(ensure_built(data, progress=hooks.on_build, log=hooks.log)), 1.0)]
    elif data.path is not None:
        paths = [data.path] if isinstance(data.path, str) else data.path
        entries = [(p.path, p.weight) if isinstance(p, WeightedPath) else (p, 1.0) for p in paths]
    else:
        raise ConfigError(
            "no data: neither data.path nor data.source is set",
            hint="data.path=FILE.h5 (see trm build-capsules) or a folder of puzzles (see trm build-puzzles), or "
            "data.source=digits to try it out",
        )
    files = [(open_dataset(path), weight) for path, weight in entries]
    for file, _ in files:
        file.require_trainable()
        require_checksums(file, "train")
    require_mixable([file for file, _ in files], "train")
    for file, _ in files[1:]:
        if not np.array_equal(file.prices, files[0][0].prices):
            raise ConfigError(
                f"{file.path} and {files[0][0].path} have different prices", hint="build both with the same prices"
            )
    puzzles = [file for file, _ in files if isinstance(file, PuzzleData)]
    if puzzles:
        puzzles = numbered_together(puzzles)
        files = [(some, weight) for some, (_, weight) in zip(puzzles, files, strict=True)]
    num_puzzles = max((some.shift + some.num_puzzles for some in puzzles), default=0)
    features = resolve_features(config, files[0][0], num_puzzles, place.world_size)
    eval_file = open_dataset(data.eval_path) if data.eval_path else files[0][0]
    if puzzles and not data.eval_path:
        eval_file = next((some for some in puzzles if some.rows.get("test")), puzzles[0])
        if len(puzzles) > 1:
            notes.append(f"several folders: only {eval_file.path} is evaluated; set data.eval_path to evaluate another")
    if puzzles and data.num_workers:
        notes.append("data.num_workers has no effect on puzzles: they are read from mapped memory")
    require_same_task(files[0][0], eval_file)
    if config.arch.enable_hierarchical_attention and not eval_file.has("parents"):
        raise ConfigError(
            f"{eval_file.path} has no parents, which arch.enable_hierarchical_attention=true needs",
            hint="evaluate on a file built with the same settings",
        )
    if isinstance(eval_file, PuzzleData) and config.arch.puzzle_emb_ndim:
        try:
            eval_file = numbered_as_trained(eval_file, num_puzzles, identifiers_record(puzzles))
        except DataError as error:
            raise ConfigError(error.message, hint=error.hint) from error
    try:
        split, reason = pick_split(eval_file, data.eval_split)
    except UsageError as error:
        raise ConfigError(f"data.eval_split={data.eval_split}: {error.message}", hint=error.hint) from error
    device, chosen = pick_device(config.training.device, place.local_rank)
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    notes += [chosen, place.why, *settled(config, features)]
    if config.training.precision == "bfloat16" and reduced_precision(device) != "bfloat16":
        notes.append("this GPU only emulates bfloat16, which is slow: training.precision=float16 is faster on it")
    return Prepared(
        resolved(config, features), features, files, EvaluationData(eval_file, split), reason, device, notes
    )


def settled(config: Config, features: Features) -> list[str]:
    """What `auto` was resolved to, and why."""
    asked = {"enable_capsule_expansion": config.arch.enable_capsule_expansion, "enable_dqn": config.dqn.enabled}
    names = {"enable_capsule_expansion": "EXPAND", "enable_dqn": "Q-learning"}
    return [
        f"{names[one.name]} {'on' if one.on else 'off'}: {one.reason.removeprefix('auto: ')}"
        for one in features.status
        if asked.get(one.name) == "auto"
    ]


def weights_left_over(loaded: LoadedConfig, prepared: Prepared) -> list[str]:
    """Notes on loss weights that were given but have no effect with these data, once `auto` is resolved."""
    default = LossWeights()
    given = [
        key
        for key, origin in loaded.origins.items()
        if origin != DEFAULT
        and key.startswith("loss_weights.")
        and getattr(loaded.config.loss_weights, key.split(".")[1]) != getattr(default, key.split(".")[1])
    ]
    found = without_effect(prepared.config, given)
    if prepared.puzzles and "loss_weights.reconstruction_loss" in given:
        found.append("loss_weights.reconstruction_loss has no effect: puzzles have no sketches to predict")
    return [note for note in found if note not in loaded.notes]


def require_same_task(train: Dataset, other: Dataset) -> None:
    """Raises ConfigError when a model trained on `train` cannot answer `other`."""
    for name in ("num_capsules", "dim", "num_children", "checksum_dim", "label_rank", "num_classes"):
        ours, theirs = getattr(train, name), getattr(other, name)
        if ours != theirs:
            raise ConfigError(
                f"{other.path} has {name}={theirs}, but {train.path} has {ours}",
                hint="evaluate on a file built with the same settings",
            )
    if not np.array_equal(train.prices, other.prices):
        raise ConfigError(
            f"{other.path} and {train.path} have different prices", hint="build both with the same prices"
        )
    found = Encoding.of(train.manifest).contradiction(Encoding.of(other.manifest))
    if found is not None:
        raise ConfigError(f"{other.path} does not fit {train.path}: {found.why}", hint=found.hint)


def changes_on_resume(run: Path, config: Config) -> list[str]:
    """Notes on what changes if `run` is resumed with this config. Raises ConfigError if it cannot be."""
    changes = refuse_drift(load_recorded(run / CONFIG).config, config, run)
    step, total = max(map(step_of, list_checkpoints(run)), default=0), config.training.total_steps
    if step > total:
        raise ConfigError(
            f"{run} is already at step {step}, past training.total_steps={total}",
            hint=f"training.total_steps={step} ends it there, a larger number trains it longer; trm eval {run} "
            "evaluates it",
        )
    return [f"changed on resume: {text}" for text in changes]


def dry_run(loaded: LoadedConfig, hooks: RunHooks, processes: int = 1, resume: str | None = None) -> DryRun:
    """Do everything up to the first step, without writing a run directory. Refuses what training would refuse."""
    run, going_on = choose_run_path(loaded.config, resume)
    prepared = prepare(loaded.config, hooks, Place(world_size=processes))
    if going_on:
        for change in changes_on_resume(run, prepared.config):
            hooks.log(change)
    else:
        require_more_than_exceptions(prepared.config.training.freeze)
    for note in [*prepared.notes, *weights_left_over(loaded, prepared)]:
        hooks.log(note)
    config, shape = prepared.config, prepared.features.shape
    with shapes_only():
        model = TinyRecursiveModel(config, shape, with_cmi=prepared.features.cmi)
    if config.training.init_from is not None and not going_on:
        for note in read_initial(model, Path(config.training.init_from), prepared.puzzles).notes:
            hooks.log(note)
    rows = sum(rows_per_epoch(file, "train") for file, _ in prepared.files)
    parameters = sum(p.numel() for p in model.parameters())
    return DryRun(prepared, parameters, rows / config.training.global_batch_size, processes)
