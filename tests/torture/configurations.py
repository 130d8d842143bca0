"""The runs to kill, which together have every part of the state that a checkpoint can hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny
from tiny_puzzles import ARCH, write_puzzles

STEPS = 44
CAPSULES, PUZZLES = "tiny.h5", "puzzles"


def write_data(folder: Path) -> Path:
    """Write the data that the configurations train on into an existing folder."""
    tiny.write_capsules(folder / CAPSULES, {"train": 40, "validation": 8})
    write_puzzles(folder / PUZZLES, groups=9, copies=2, examples=3, identifiers=5)
    return folder


@dataclass(frozen=True)
class Configuration:
    """Changes to the tiny config."""

    interval: int
    sections: dict[str, dict[str, Any]]
    keep: int = 2
    data: str = CAPSULES

    def arguments(self, folder: Path, run: Path) -> list[str]:
        """Arguments of `trm`. folder: where `write_data` has written."""
        training = {
            "run_dir": run,
            "total_steps": STEPS,
            "checkpoint_interval": self.interval,
            "keep_checkpoints": self.keep,
            "log_interval": 1,
            "monitor_gradients": "false",
            "eval_interval": 8,
        }
        mine = {"training": training, "data": {"path": folder / self.data}}
        names = mine.keys() | self.sections.keys()
        merged = {name: {**mine.get(name, {}), **self.sections.get(name, {})} for name in names}
        return ["train", "--resume", "auto", *tiny.as_overrides(**merged)]


CONFIGURATIONS = {
    "average and prioritised replay": Configuration(
        5,
        {
            "training": {"ema_decay": 0.9},
            "dqn": {"replay": "prioritized", "buffer_capacity": 60, "buffer_min_size": 12},
        },
    ),
    "memory, concepts, a loading process": Configuration(
        7,
        {
            "arch": {"enable_concepts": "true", "num_concepts": 5},
            "memory": {"enabled": "true", "capacity": 16, "num_heads": 2, "reward_threshold": -0.5},
            "data": {"num_workers": 1},
        },
    ),
    "recurrent head, replayed runs, a finished predictor": Configuration(
        4,
        {
            "arch": {"q_head_type": "rnn", "dropout": 0.1},
            "dqn": {"sequence_length": 3, "enable_curiosity": "true"},
            "training": {"predictor_steps": 21, "ema_decay": 0.9},
        },
    ),
    "Muon, half precision replay, accumulation": Configuration(
        3,
        {
            "arch": {"dropout": 0.1},
            "training": {"optimizer": "muon", "accumulation_steps": 2, "ema_decay": "null"},
            "dqn": {"buffer_dtype": "float16", "max_age": 9, "buffer_capacity": 60},
        },
        keep=3,
    ),
    "puzzles with embeddings of their own": Configuration(
        5,
        {
            "arch": {**ARCH, "dropout": 0.1},
            "dqn": {"enabled": "false"},
            "training": {"ema_decay": 0.9, "puzzle_emb_lr": 0.02},
            "data": {"draw": "batch"},
        },
        data=PUZZLES,
    ),
    "plain halting": Configuration(
        6,
        {
            "arch": {"enable_capsule_expansion": "false", "q_head_num_actions": 2},
            "dqn": {"enabled": "false"},
        },
    ),
}
