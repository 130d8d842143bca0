"""Puzzles with every other feature: each run trains, stops, resumes bit for bit, and evaluates.

A handful of rows that together have every feature on and off. For pairs of features, with capsules, see
test_every_combination.py.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny_puzzles import ARCH, write_puzzles

STEPS = 16
MEMORY = {"enabled": "true", "capacity": 16, "num_heads": 2, "reward_threshold": -0.5}
Sections = dict[str, dict[str, Any]]

ROWS: dict[str, Sections] = {
    "as the public code": {
        "dqn": {"enabled": "false", "halt_exploration": 0.3, "halt_exploration_draw": "step"},
        "data": {"draw": "batch"},
        "training": {"ema_decay": 0.9},
    },
    "HRM with its continue logit": {
        "arch": {"tied": "false", "enable_q_continue": "true", "probabilities": "softmax", "max_steps": 4},
        "dqn": {"enabled": "false"},
        "training": {"accumulation_steps": 2, "optimizer": "adamw", "ema_decay": "null"},
    },
    "a policy with memory, concepts and later tokens": {
        "arch": {
            "enable_concepts": "true",
            "num_concepts": 5,
            "enable_mtp": "true",
            "q_head_type": "mlp",
            "mixer": "mlp",
            "pos_encodings": "none",
        },
        "memory": MEMORY,
        "dqn": {"enabled": "true", "buffer_min_size": 8, "replay": "prioritized", "enable_curiosity": "true"},
    },
    "adaptive cycles in half precision": {
        "arch": {"enable_adaptive_hcycles": "true", "hcycle_confidence_threshold": -6.0, "pos_encodings": "learned"},
        "dqn": {"enabled": "false"},
        "data": {"draw": "batch"},
        "training": {"precision": "bfloat16", "activation_checkpointing": "true", "optimizer": "muon"},
    },
    "a recurrent policy that outlives its predictor": {
        "arch": {"q_head_type": "rnn", "dropout": 0.1, "puzzle_emb_ndim": 0},
        "dqn": {"enabled": "true", "buffer_min_size": 8, "sequence_length": 2, "max_age": 9},
        "training": {"predictor_steps": 12, "accumulation_steps": 2, "activation_checkpointing": "true"},
    },
    "attention head, everything at once": {
        "arch": {
            "q_head_type": "attention",
            "enable_adaptive_hcycles": "true",
            "enable_concepts": "true",
            "num_concepts": 4,
            "enable_mtp": "true",
            "puzzle_emb_len": 0,
        },
        "memory": MEMORY,
        "dqn": {"enabled": "true", "buffer_min_size": 8},
        "data": {"draw": "batch"},
        "training": {"precision": "bfloat16", "accumulation_steps": 2, "freeze": "[embedding.puzzles.*]"},
    },
}


def overrides_of(row: Sections, data: Path, run: Path) -> list[str]:
    mine: Sections = {
        "arch": ARCH,
        "data": {"path": data},
        "training": {"run_dir": run, "total_steps": STEPS, "checkpoint_interval": 9, "puzzle_emb_lr": 0.02},
    }
    names = mine.keys() | row.keys()
    return tiny.as_overrides(**{name: {**mine.get(name, {}), **row.get(name, {})} for name in names})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_puzzles(tmp_path_factory.mktemp("puzzles") / "p", groups=10, copies=2, examples=2, identifiers=5)


def weights(run: Path) -> dict[str, str]:
    folder = run / "checkpoints" / f"step_{STEPS:08d}"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("name", ROWS)
def test_trains_resumes_and_evaluates(name: str, folder: Path, tmp_path: Path) -> None:
    whole, parts = (overrides_of(ROWS[name], folder, tmp_path / part) for part in ("whole", "parts"))
    done = tiny.invoke("train", *whole)
    assert done.returncode == 0, done.stderr
    stopped = tiny.invoke("train", *parts, "training.stop_at_step=7")
    assert stopped.returncode == 75, stopped.stderr
    resumed = tiny.invoke("train", *parts, "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    evaluated = tiny.invoke("eval", tmp_path / "whole", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["scores"][0]["rows"] == 12
