"""Evaluate every checkpoint of a finished run on its held-out rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from trm_core.data.dataset import open_dataset
from trm_core.evaluation.load import TrainedRun, load_run
from trm_core.evaluation.report import EvaluationData, Evaluator, Score
from trm_core.training.checkpoint import load_model, load_weights
from trm_core.training.checkpoint_folders import MODEL, list_checkpoints


def loaded(run: Path) -> tuple[TrainedRun, EvaluationData]:
    """A run on the CPU, and the rows on which it is evaluated."""
    trained = load_run(run, torch.device("cpu"))
    return trained, EvaluationData(open_dataset(trained.data["eval"]["path"]), trained.data["eval"]["split"])


def scores_by_checkpoint(run: Path, policies: Sequence[str]) -> Iterator[tuple[Path, int, list[Score]]]:
    """Folder, step and scores of each checkpoint, oldest first."""
    trained, data = loaded(run)
    for folder in reversed(list_checkpoints(run)):
        step, weights, _ = load_model(folder)
        load_weights(trained.model, weights, folder / MODEL)
        yield folder, step, Evaluator(trained.model, trained.config, data).table(policies)
