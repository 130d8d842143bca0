"""Fixtures shared by several parts of the tests; the helpers behind them are in `tiny.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import tiny_puzzles
import torch
from forked_quarantine import Look, quarantine_server

from trm_core.data.store import quarantine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest first (`slow(minutes=..)`), so that at the end no process is left alone with a long test."""
    items.sort(key=lambda item: -max((mark.kwargs.get("minutes", 0) for mark in item.iter_markers("slow")), default=0))


@pytest.fixture(scope="session")
def capsule_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 training, 40 validation and 30 test rows; k=4, m=2, D=3, R=5, 3 classes. Only to be read."""
    return tiny.write_capsules(tmp_path_factory.mktemp("data") / "tiny.h5", {"train": 96, "validation": 40, "test": 30})


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, capsule_file: Path) -> Path:
    """A finished run on `capsule_file` with three checkpoints, one of them the best. Only to be read: copy it."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    overrides = tiny.as_overrides(
        data={"path": capsule_file},
        training={"run_dir": run, "total_steps": 60, "eval_interval": 20, "checkpoint_interval": 25, "ema_decay": 0.9},
        dqn={"expansion_cost_per_child": 0.002, "halt_exploration": 0.2},
    )
    done = tiny.invoke("train", *overrides)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="session")
def sudoku_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sudokus of 4 x 4: 270 groups of 9 to train on, 30 to test. Only to be read."""
    folder = tmp_path_factory.mktemp("puzzles") / "sudoku"
    settings = [f"data.puzzles.{name}" for name in ("size=4", "count=300", "augmentations=8", "workers=0")]
    done = tiny.invoke("build-puzzles", "sudoku", "--out", folder, *settings)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def sudoku_run(tmp_path_factory: pytest.TempPathFactory, sudoku_folder: Path) -> Path:
    """A finished run on `sudoku_folder` that solves most of the puzzles. Only to be read."""
    run = tmp_path_factory.mktemp("runs") / "sudoku"
    overrides = tiny.as_overrides(
        data={"path": sudoku_folder},
        arch={**tiny_puzzles.ARCH, "hidden_size": 32, "puzzle_emb_ndim": 32, "mixer": "mlp", "pos_encodings": "none"},
        training={
            "run_dir": run, "total_steps": 150, "global_batch_size": 32, "base_lr": 4e-3, "weight_decay": 0.1,
            "eval_interval": 1000, "checkpoint_interval": 1000, "lr_warmup_steps": 10,
        },
        dqn={"enabled": False},
    )  # fmt: skip
    done = tiny.invoke("train", *overrides)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="session")
def _quarantine() -> Iterator[str]:
    with quarantine_server() as address:
        yield address


@pytest.fixture(autouse=True)
def _looked_at_by_forks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examine strangers' files in forks, because there are thousands; `real_look` marks tests of the real child."""
    if request.node.get_closest_marker("real_look") is None:
        monkeypatch.setattr(quarantine, "_start", lambda path: Look(request.getfixturevalue("_quarantine"), path))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Use one thread: tiny tensors are slower on many, and sums then are the same on every machine."""
    torch.set_num_threads(1)
