"""Evaluate a finished run on any split or file: what `trm eval` does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from trm_core.config.schema import Config, Selector
from trm_core.data.dataset import Dataset, open_dataset
from trm_core.data.encoding import Encoding
from trm_core.data.puzzles.identifiers import numbered_as_trained
from trm_core.data.puzzles.reader import PuzzleData
from trm_core.devices import pick_device
from trm_core.distributed.collectives import of_first_rank, on_every_rank, rank, world_size
from trm_core.dqn.selectors import PEEKING
from trm_core.errors import CheckpointError, DataError, UsageError
from trm_core.evaluation.area import curve_area
from trm_core.evaluation.by_class import by_class, names_of_classes
from trm_core.evaluation.by_difficulty import by_difficulty, cells_to_fill
from trm_core.evaluation.load import TrainedRun, load_run
from trm_core.evaluation.policies import PLAIN
from trm_core.evaluation.puzzles import can_vote, tasks_of, vote
from trm_core.evaluation.report import (
    CURVE_PLACES,
    CURVE_THRESHOLDS,
    EvaluationData,
    Evaluator,
    Score,
    as_records,
    chance,
    default_policies,
    pick_split,
    require_policies,
)
from trm_core.evaluation.rollout import Thinking
from trm_core.training.run_dir import write_atomic

_HINT_ALIKE = "evaluate on a file built with the same settings as the training file"
_LAG_S = 60.0  # a network file system may show a new folder to other machines this much later


@dataclass(frozen=True)
class EvalRequest:
    """What to evaluate. None: as at the end of the run."""

    policies: list[str] | None = None
    split: str | None = None
    data: Path | None = None
    prices: list[float] | None = None
    confidence: float = 0.95
    selector: str | None = None
    checkpoint: str = "latest"
    curves: bool = False
    by_class: bool = False  # for the named policies, else the first
    by_difficulty: bool = False  # likewise; puzzles
    max_steps: int | None = None
    restarts: int = 1
    submission: Path | None = None  # ARC: where to write the answers in Kaggle's format
    device: str = "auto"
    overrides: Sequence[str] = ()  # of the run's config; see `trm_core.evaluation.overrides`


def evaluate_run(
    path: Path,
    request: EvalRequest,
    log: Callable[[str], None] = lambda message: None,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
    local_rank: int = 0,
) -> dict[str, Any]:
    """The record of the evaluation; when several processes evaluate together, it is complete on rank 0. Raises
    CheckpointError, ConfigError, DataError or UsageError.
    """
    if request.checkpoint not in ("latest", "best"):
        raise UsageError(f"no checkpoint '{request.checkpoint}'", hint="latest or best")
    device, _ = on_every_rank(lambda: pick_device(request.device, local_rank))
    run = load_alike(path, device, request.checkpoint, request.overrides)
    for note in run.notes:
        log(note)
    config = with_selector(run, request.selector)
    names = request.policies or default_policies(config)
    require_policies(names, config)
    data = evaluation_data(run, config, request)
    classes = names_of_classes(data, run.model.data.num_classes) if request.by_class else []
    cells = cells_to_fill(data) if request.by_difficulty else None
    passes = request.restarts * len(names) * len(request.prices or [1]) + request.curves * (
        len(CURVE_THRESHOLDS) + len(CURVE_PLACES)
    )
    total, done = passes * data.file.rows[data.split], 0

    def count(rows: int) -> None:
        nonlocal done
        done += rows * world_size()  # the other processes are about as far
        on_rows(min(done, total), total)

    voting = can_vote(data)
    tasks = tasks_of(data) if voting else []
    if request.submission is not None:
        if not voting:
            raise UsageError(
                f"{data.file.path} ({data.split}) holds no ARC tasks to make a submission of",
                hint="evaluate the test split of a folder that trm build-puzzles arc wrote",
            )
        if not request.submission.absolute().parent.is_dir():
            raise UsageError(f"{request.submission}: there is no folder {request.submission.parent}", hint="make it")
    thinking = Thinking(request.max_steps, request.restarts)
    evaluator = Evaluator(run.model, config, data, count, thinking)
    scores: list[Score] = []
    mistakes: list[dict[str, Any]] = []
    difficulties: list[dict[str, Any]] = []
    if voting and not data.labelled():
        # There is nothing to compare with, as in a competition: only the answers count.
        evaluator.run(PLAIN["never"](run.model.price_level))
    else:
        for score, outcome in evaluator.scored(names, request.prices, request.confidence):
            scores.append(score)
            told = request.policies or score.policy == names[0]
            if request.by_class and told:
                mistakes.append(by_class(score, outcome, data, classes))
            if cells is not None and told:
                difficulties.append(by_difficulty(score, outcome, cells))
    record: dict[str, Any] = {
        "run": str(path),
        "step": run.step,
        "data": {"path": str(data.file.path), "split": data.split, "splits": list(data.file.rows)},
        "puzzles": run.model.data.tokens,
        "chance": chance(data, run.model.data.num_classes),
        "capsules": run.model.data.num_capsules,
        "max_steps": request.max_steps or config.arch.max_steps,
        "restarts": request.restarts,
        "price_level": run.model.price_level,
        "overrides": list(request.overrides),
        "selector": config.dqn.expansion_selector if config.arch.enable_capsule_expansion else None,
        "peeks": config.arch.enable_capsule_expansion and config.dqn.expansion_selector in PEEKING,
        "scores": as_records(scores),
    }
    if request.by_class:
        of = "samples" if data.file.label_rank == 1 else "capsules"
        record["by_class"] = {"of": of, "names": classes, "policies": mistakes}
    if request.by_difficulty:
        record["by_difficulty"] = {"of": "cells to fill", "policies": difficulties}
    if voting and rank() == 0:
        voter = "never" if "never" in evaluator.outcomes else scores[0].policy
        voted = vote(data, evaluator.outcomes[voter], tasks)
        record["arc"] = voted.summary(voter)
        if request.submission is not None:
            write_atomic(request.submission, json.dumps(voted.submission))
    if request.curves:
        record["curves"] = {"threshold": as_records(evaluator.threshold_curve())}
        if config.dqn.enabled:
            record["curves"]["learned"] = as_records(evaluator.learned_curve(request.prices))
    curves = dict(record.get("curves", {}))
    if "learned" not in curves and len(request.prices or []) > 1 and "learned" in names:
        curves["learned"] = [score for score in record["scores"] if score["policy"] == "learned"]
    if curves and run.model.data.num_children:
        # Between opening nothing and a curve's first point one may choose at random, so every curve starts at `never`.
        never = [score for score in record["scores"] if score["policy"] == "never"]
        start = (never or as_records(evaluator.table(["never"])))[0]
        record["areas"] = {name: area_of([start, *curve], record["capsules"]) for name, curve in curves.items()}
    return record


def load_alike(path: Path, device: torch.device, checkpoint: str, overrides: Sequence[str] = ()) -> TrainedRun:
    """The run on every process that evaluates it, at the step that the first one finds. Raises CheckpointError."""
    found = on_every_rank(lambda: None if rank() else load_run(path, device, checkpoint, overrides))
    step = of_first_rank(None if found is None else found.step)
    return on_every_rank(lambda: load_at(step, path, device, checkpoint, overrides) if found is None else found)


def load_at(step: int, path: Path, device: torch.device, checkpoint: str, overrides: Sequence[str] = ()) -> TrainedRun:
    """The run at a step that another process has seen, once this one sees it. Raises CheckpointError if it never
    does.
    """
    until = time.monotonic() + _LAG_S
    while True:
        try:
            run = load_run(path, device, checkpoint, overrides)
            if run.step == step:
                return run
            seen = f"step {run.step}"
        except CheckpointError as error:
            seen = error.message
        if time.monotonic() > until:
            raise CheckpointError(
                f"{path}: process {rank()} sees {seen}, but the first process a checkpoint of step {step}",
                hint="the run must be on a file system that all processes share, and must not be training meanwhile",
            )
        time.sleep(_LAG_S / 60)


def area_of(scores: list[dict[str, Any]], num_capsules: int) -> float:
    """Area under the accuracy/opened curve of these scores."""
    return curve_area([score["opened"] for score in scores], [score["accuracy"] for score in scores], num_capsules)


def with_selector(run: TrainedRun, selector: str | None) -> Config:
    """The run's config, with another selector if asked for. Raises UsageError if the model cannot select that way."""
    config, model = run.config, run.model
    if selector is None:
        return config
    if selector not in get_args(Selector):
        raise UsageError(f"no selector '{selector}'", hint=f"choose from {', '.join(get_args(Selector))}")
    if not config.arch.enable_capsule_expansion:
        raise UsageError(f"selector '{selector}': this run opens no capsules")
    if selector == "cmi" and model.cmi_head is None:
        raise UsageError("selector 'cmi' needs a run with dqn.expansion_selector=cmi: its head was not trained")
    if selector == "attention" and config.arch.mixer != "attention":
        raise UsageError(f"selector 'attention' needs attention, and this run has arch.mixer={config.arch.mixer}")
    if selector == "checksum" and (model.reconstruction is None or model.reconstruction.checksum is None):
        raise UsageError("selector 'checksum' needs a capsule file with checksums")
    return config.model_copy(update={"dqn": config.dqn.model_copy(update={"expansion_selector": selector})})


def evaluation_data(run: TrainedRun, config: Config, request: EvalRequest) -> EvaluationData:
    """The file and split to evaluate. Raises CheckpointError if the file does not fit the model."""
    recorded = run.data["eval"]
    try:
        file = open_dataset(request.data or recorded["path"])
    except DataError as error:
        if request.data is not None:
            raise
        hint = f"{error.hint}; if it was moved, name it with --data"
        raise DataError(f"{run.path} was trained with {error.message}", hint=hint) from error
    if isinstance(file, PuzzleData) and config.arch.puzzle_emb_ndim:
        file = numbered_as_trained(file, run.model.data.num_puzzles, run.data.get("identifiers"))
    require_fit(run, config, file)
    if request.split is not None:
        return EvaluationData(file, pick_split(file, request.split)[0])
    if request.data is None:
        return EvaluationData(file, pick_split(file, recorded["split"])[0])
    return EvaluationData(file, pick_split(file, "auto")[0])


def require_fit(run: TrainedRun, config: Config, file: Dataset) -> None:
    """Raise CheckpointError if the model cannot read or answer the file."""
    shape = run.model.data
    expected = {
        "num_capsules": shape.num_capsules,
        "dim": shape.dim,
        "num_classes": shape.num_classes,
        "label_rank": shape.label_rank,
    }
    if shape.num_children:
        expected["num_children"] = shape.num_children
    if shape.checksum_dim and config.dqn.expansion_selector == "checksum":
        expected["checksum_dim"] = shape.checksum_dim
    if shape.has_parents and not file.has("parents"):
        raise CheckpointError(
            f"{file.path} has no parents, but {run.path} was trained with hierarchical attention",
            hint=_HINT_ALIKE,
        )
    for name, value in expected.items():
        if getattr(file, name) != value:
            raise CheckpointError(
                f"{file.path} has {name}={getattr(file, name)}, but {run.path} was trained with {value}",
                hint=_HINT_ALIKE,
            )
    if file.has("mask") and run.data.get("masked") is False:
        raise CheckpointError(
            f"{file.path} has padding capsules, and {run.path} was trained on data without any", hint=_HINT_ALIKE
        )
    prices = run.data.get("prices")
    if prices is not None and not np.array_equal(np.float32(prices), file.prices):
        raise CheckpointError(
            f"{file.path} has other capsule prices than the data {run.path} was trained on", hint=_HINT_ALIKE
        )
    found = Encoding.of_run(run.data).contradiction(Encoding.of(file.manifest))
    if found is not None:
        raise CheckpointError(
            f"{file.path} does not fit the data {run.path} was trained on: {found.why}", hint=found.hint
        )
