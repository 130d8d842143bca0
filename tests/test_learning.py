"""If only children hold the answer, a short run learns to open them, and a model that never opens stays at chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from trm_core.config import load_config
from trm_core.data.checksum import checksums
from trm_core.data.store import CapsuleWriter
from trm_core.prepare import RunHooks
from trm_core.runs import train_run
from trm_core.training.stopping import StopFlag

K, M, DIM, CLASSES = 4, 2, 4, 4


def write_task(path: Path, rows: dict[str, int]) -> None:
    """Write samples whose sketches are noise. The children of one capsule, at a random position, are the pattern of the
    class. Only there the last number of the sketch is 1, so the sketches show the position but not the answer."""
    random = np.random.default_rng(0)
    patterns = random.normal(size=(CLASSES, M, DIM)) * 1.5
    writer = CapsuleWriter(path, num_capsules=K, dim=DIM, num_children=M, checksum_dim=4, dtype="float32")
    with writer:
        for split, n in rows.items():
            labels = np.arange(n) % CLASSES
            random.shuffle(labels)
            sketches = random.normal(size=(n, K, DIM))
            children = random.normal(size=(n, K, M, DIM))
            place = random.integers(0, K, n)
            children[np.arange(n), place] = patterns[labels] + 0.1 * random.normal(size=(n, M, DIM))
            sketches[..., -1] = 0.0
            sketches[np.arange(n), place, -1] = 1.0
            sums = checksums(children.astype(np.float32), 4, 0)
            writer.append(split, {"sketches": sketches, "children": children, "checksums": sums, "labels": labels})
        writer.close({"task": "classes", "num_classes": CLASSES, "checksum_seed": 0, "kind": "arrays"})


@pytest.mark.slow
def test_learns_to_open_what_holds_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "task.h5"
    write_task(path, {"train": 2000, "test": 600})
    overrides = tiny.as_overrides(
        data={"path": path},
        arch={"hidden_size": 32, "max_steps": 4, "q_head_hidden_dim": 64, "ffn_expansion": 2.0},
        training={
            "run_dir": tmp_path / "run",
            "global_batch_size": 64,
            "total_steps": 700,
            "predictor_steps": 450,
            "lr_warmup_steps": 20,
            "lr_min_ratio": 0.1,
            "ema_decay": 0.99,
            "halt_gradient": "head",
            "eval_interval": 10_000,
            "checkpoint_interval": 10_000,
            "log_interval": 50,
        },
        dqn={
            "buffer_capacity": 10_000,
            "buffer_min_size": 500,
            "batch_size": 128,
            "gamma": 1.0,
            "target_tau": 0.01,
            "epsilon_decay": 450,
            "epsilon_end": 0.1,
            "expansion_cost_per_child": 0.005,
            "reward_step_penalty": 0.005,
            "reward_expansion_bonus": 0.0,
        },
        loss_weights={"reconstruction_loss": 0.1},
    )
    torch.set_num_threads(1)
    result = train_run(load_config(None, overrides), None, RunHooks(), StopFlag())
    scores = {score["policy"]: score for score in result.evaluation["scores"]}
    assert scores["learned"]["accuracy"] >= 0.95
    assert 0.9 <= scores["learned"]["opened"] < 2.5, "it pays for the capsule that tells, and little more"
    assert scores["never"]["low"] <= 1 / CLASSES <= scores["never"]["high"]
    assert scores["never"]["opened"] == 0
    assert scores["random"]["accuracy"] < scores["learned"]["accuracy"] - 0.1, "which capsule is opened matters"
