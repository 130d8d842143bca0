"""Every pair of settings of any two features trains, stops, resumes exactly and evaluates, through the command line.

The rows are a covering array: for any two features and any value of each there is a run with both, except for pairs
that the config refuses.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import tiny

FEATURES: dict[str, list[Any]] = {
    "labels": ["one per sample", "one per capsule"],
    "policy": ["expand", "two actions", "act", "act with continue"],
    "arch.q_head_type": ["mlp", "rnn", "attention"],
    "dqn.expansion_selector": ["cmi", "checksum", "entropy", "attention", "static", "random", "variance"],
    "replay": ["uniform", "prioritized", "prioritized, recent, thresholded", "aged, fp16"],
    "dqn.sequence_length": [1, 3],
    "dqn.enable_curiosity": ["false", "true"],
    "memory.enabled": ["false", "true"],
    "arch.enable_concepts": ["false", "true"],
    "arch.enable_mtp": ["false", "true"],
    "arch.enable_hierarchical_attention": ["false", "true"],
    "arch.enable_adaptive_hcycles": ["false", "true"],
    "arch.restart_on_expand": ["true", "false"],
    "arch.tied": ["true", "false"],
    "arch.child_aggregation": ["project", "attention", "mean", "first"],
    "arch.readout": ["flat", "mean"],
    "training.optimizer": ["adamatan2", "adamw", "muon"],
    "training.ema_decay": ["0.9", "null"],
    "training.accumulation_steps": [1, 2],
    "training.halt_gradient": ["trunk", "head"],
    "training.precision": ["float32", "bfloat16", "float16"],
    "training.activation_checkpointing": ["false", "true"],
    "training.freeze": ["[]", "[embedding.*]"],
    "training.predictor_steps": ["null", 11],
    "dqn.reward_signal": ["probability", "accuracy"],
    "dqn.enable_entropy_regularization": ["false", "true"],
}
REPLAY: dict[str, dict[str, Any]] = {
    "uniform": {},
    "prioritized": {"replay": "prioritized"},
    "prioritized, recent, thresholded": {"replay": "prioritized", "recent_fraction": 0.3, "td_error_threshold": 0.01},
    "aged, fp16": {"max_age": 9, "buffer_dtype": "float16", "td_error_threshold": 0.01},
}
Row = dict[str, Any]
STEPS, STOP = 14, 8  # long enough for transitions to exceed `max_age`; the predictor ends between the two


def allowed(row: Row) -> bool:
    """Whether a row is neither refused by `trm_core.training.features` nor indistinguishable from another row."""
    has_dqn = row.get("policy", "expand") in ("expand", "two actions")
    refused = (
        row.get("arch.enable_mtp") == "true" and row.get("labels") == "one per sample",
        row.get("dqn.sequence_length") == 3 and row.get("arch.q_head_type", "rnn") != "rnn",
        row.get("dqn.enable_curiosity") == "true" and not has_dqn,
        row.get("training.predictor_steps") == 11 and not has_dqn,
    )
    return not any(refused)


def covering_array() -> list[Row]:
    """Built greedily: each new row takes, feature by feature, the value that covers most of the remaining pairs."""
    names = list(FEATURES)
    open_pairs = {
        (a, x, b, y)
        for a, b in itertools.combinations(names, 2)
        for x in FEATURES[a]
        for y in FEATURES[b]
        if allowed({a: x, b: y})
    }
    draw, rows = random.Random(0), []
    while open_pairs:
        a, x, b, y = min(open_pairs, key=str)
        row: Row = {a: x, b: y}
        rest = [name for name in names if name not in row]
        draw.shuffle(rest)
        for name in rest:
            choices = [value for value in FEATURES[name] if allowed({**row, name: value})]
            gains = {
                value: sum(
                    ((c, z, name, value) in open_pairs) + ((name, value, c, z) in open_pairs) for c, z in row.items()
                )
                for value in draw.sample(choices, len(choices))
            }
            row[name] = max(gains.items(), key=lambda pair: pair[1])[0]
        rows.append({name: row[name] for name in names})
        open_pairs -= {(c, row[c], d, row[d]) for c, d in itertools.combinations(names, 2)}
    return rows


ROWS = covering_array()


def overrides_of(row: Row, data: Path, run: Path) -> list[str]:
    sections: dict[str, dict[str, Any]] = {
        "arch": {"H_cycles": 2, "num_concepts": 5},
        "dqn": dict(REPLAY[row["replay"]]),
    }
    for key, value in row.items():
        section, _, name = key.partition(".")
        if name:
            sections.setdefault(section, {})[name] = value
    sections["memory"] |= {"capacity": 16, "num_heads": 2, "reward_threshold": -0.5}
    sections["training"] |= {"run_dir": run, "total_steps": STEPS}
    sections["dqn"] |= {"entropy_regularization_weight": 0.01, "buffer_min_size": 8}
    sections["arch"] |= {
        "expand": {"enable_capsule_expansion": "true"},
        "two actions": {"enable_capsule_expansion": "false", "q_head_num_actions": 2},
        "act": {"enable_capsule_expansion": "false", "q_head_num_actions": 2},
        "act with continue": {
            "enable_capsule_expansion": "false",
            "q_head_num_actions": 2,
            "enable_q_continue": "true",
        },
    }[row["policy"]]
    sections["dqn"]["enabled"] = "false" if row["policy"].startswith("act") else "true"
    sections["data"] = {"path": data}
    return tiny.as_overrides(**sections)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, rows = tmp_path_factory.mktemp("combinations"), {"train": 40, "validation": 12}
    return {
        name: tiny.write_capsules(folder / f"{rank}.h5", rows, label_rank=rank, parents=True)
        for rank, name in enumerate(FEATURES["labels"], start=1)
    }


def weights(run: Path) -> dict[str, str]:
    folder = run / "checkpoints" / f"step_{STEPS:08d}"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def test_every_allowed_pair_is_there() -> None:
    for (a, xs), (b, ys) in itertools.combinations(FEATURES.items(), 2):
        for x, y in itertools.product(xs, ys):
            assert any(row[a] == x and row[b] == y for row in ROWS) == allowed({a: x, b: y}), (a, x, b, y)
    assert all(allowed(row) for row in ROWS)


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=[pytest.mark.slow] if number % 9 else []) for number in range(len(ROWS))]
)
def test_trains_resumes_and_evaluates(number: int, files: dict[str, Path], tmp_path: Path) -> None:
    row = ROWS[number]
    whole, parts = (overrides_of(row, files[row["labels"]], tmp_path / name) for name in ("whole", "parts"))
    done = tiny.invoke("train", *whole)
    assert done.returncode == 0, (row, done.stderr)
    stopped = tiny.invoke("train", *parts, f"training.stop_at_step={STOP}")
    assert stopped.returncode == 75, (row, stopped.stderr)
    resumed = tiny.invoke("train", *parts, "--resume", "auto")
    assert resumed.returncode == 0, (row, resumed.stderr)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole"), row
    evaluated = tiny.invoke("eval", tmp_path / "whole", "--json")
    assert evaluated.returncode == 0, (row, evaluated.stderr)
