"""NaN in rows that nobody has looked at before: training and evaluation end with the file, the split and the row."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny
import torch
from ranks import on_ranks

from trm_core.errors import TrmError
from trm_core.evaluation import report
from trm_core.evaluation.evaluate import EvalRequest, evaluate_run
from trm_core.prepare import RunHooks, prepare
from trm_core.training import setup
from trm_core.training.loggers import AllLoggers
from trm_core.training.stopping import StopFlag
from trm_core.training.trainer import Hooks, Trainer

ROWS = {"train": 96, "validation": 40, "test": 30}


def write(path: Path, dataset: str = "", row: int = 0, value: float = np.nan) -> Path:
    """A file with one number of one row of a dataset changed. Without checksums, which would tell as well."""
    tiny.write_capsules(path, ROWS, checksum_dim=0)
    if dataset:
        with h5py.File(path, "r+") as h5:
            values = h5[dataset][row]
            values.flat[-1] = value
            h5[dataset][row] = values
    return path


@pytest.fixture
def few_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale of the input is taken from so few rows that it does not meet the one."""
    monkeypatch.setattr(setup, "_SCALE_ROWS", 4)


@pytest.mark.parametrize(("name", "value"), [("sketches", np.nan), ("children", -np.inf)])
@pytest.mark.usefixtures("few_seen")
def test_a_training_row_far_back(tmp_path: Path, name: str, value: float) -> None:
    good, bad = write(tmp_path / "good.h5"), write(tmp_path / "bad.h5", f"train/{name}", 71, value)
    paths = f"[{good}, {bad}]"
    done = tiny.invoke(
        "train",
        *tiny.as_overrides(
            data={"path": paths},
            training={"run_dir": tmp_path / "run", "total_steps": 200, "checkpoint_interval": 10},
            dqn={"random_open_fraction": 1.0},
        ),
    )
    assert done.returncode == 4, done.stderr
    assert f"{bad}: train/{name}: row 71 holds NaN or infinity" in done.stderr
    assert f"trm inspect-dataset {bad}" in done.stderr
    assert "skipped" not in done.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 4


@pytest.mark.parametrize(("name", "policies"), [("sketches", "never"), ("children", "all")])
def test_a_row_of_an_evaluation(tmp_path: Path, trained_run: Path, name: str, policies: str) -> None:
    path = write(tmp_path / "a.h5", f"validation/{name}", 33)
    arguments = ("eval", trained_run, "--data", path, "--policy", policies)
    done = tiny.invoke(*arguments, "--split", "validation")
    assert done.returncode == 4, done.stderr
    assert f"{path}: validation/{name}: row 33 holds NaN or infinity" in done.stderr
    assert done.stdout == ""
    assert tiny.invoke(*arguments, "--split", "test").returncode == 0


def test_a_validation_row_ends_a_training_run(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", "validation/sketches", 0)
    training = {"run_dir": tmp_path / "run", "eval_interval": 5, "checkpoint_interval": 1000}
    done = tiny.invoke("train", *tiny.as_overrides(data={"path": path}, training=training))
    assert done.returncode == 4, done.stderr
    assert f"{path}: validation/sketches: row 0 holds NaN or infinity" in done.stderr
    assert [folder.name for folder in (tmp_path / "run/checkpoints").iterdir()] == ["step_00000005"]


def test_an_outcome_that_is_not_finite_of_finite_rows_stands(
    trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report.Outcome, "finite", lambda outcome: False)
    assert tiny.invoke("eval", trained_run, "--policy", "never").returncode == 0


def ended(number: int, world: int, path: str, run: str) -> list[list[str | int]]:
    """What training and evaluation end with in a process of several, of which one meets the row."""
    setup._SCALE_ROWS, report.EVAL_BATCH = 4, 7
    found: list[list[str | int]] = []
    config = tiny.make_config(data={"path": path}, training={"total_steps": 200})
    prepared = prepare(config, RunHooks())
    trainer = Trainer(prepared.config, prepared.features, prepared.files, prepared.device)
    for work in (
        lambda: trainer.run(AllLoggers([]), StopFlag(), Hooks()),
        lambda: evaluate_run(Path(run), EvalRequest(policies=["never"], data=Path(path), split="train")),
    ):
        try:
            work()
        except TrmError as error:
            found.append([int(error.exit_code), error.message])
    return found


@pytest.mark.slow
def test_several_processes_end_alike(tmp_path: Path, trained_run: Path) -> None:
    path = write(tmp_path / "a.h5", "train/sketches", 71)
    error = [4, f"{path}: train/sketches: row 71 holds NaN or infinity"]
    assert on_ranks(2, tmp_path / "ranks", ended, str(path), str(trained_run)) == [[error, error]] * 2


def test_looking_takes_padding_and_closed_capsules_too() -> None:
    capsules = tiny.make_capsules(3, mask=torch.tensor([[True] * (tiny.K - 1) + [False]] * 3))
    assert capsules.finite()
    assert capsules.children is not None
    capsules.children[2, -1, 0, 0] = torch.nan
    assert not capsules.finite()
