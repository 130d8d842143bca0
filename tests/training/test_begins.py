"""What a run refuses, or sets right, before its first step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import tiny
import torch
import yaml

from trm_core.training.initial_weights import load_initial


def test_a_bank_of_another_run_begins_its_clock_anew(trained_run: Path) -> None:
    config = tiny.make_config(memory={"enabled": True, "capacity": 8, "top_k": 2, "num_heads": 2})
    model = tiny.make_model(config, tiny.make_shape())
    assert model.memory is not None
    model.memory.written.fill_(900)
    model.memory.filled.fill_(8)
    load_initial(model, trained_run)
    assert bool(torch.isfinite(model.memory.slot_values(1)).all())


def test_nothing_left_to_learn_after_the_predictor_is_refused(capsule_file: Path, tmp_path: Path) -> None:
    done = tiny.invoke(
        "train",
        *tiny.as_overrides(
            data={"path": capsule_file},
            training={"run_dir": tmp_path / "run", "predictor_steps": 2, "freeze": "[q_head.value_net.*]"},
            dqn={"expansion_selector": "random"},
        ),
    )
    assert done.returncode == 3
    assert "training.freeze leaves nothing to learn" in done.stderr


def test_exceptions_alone_freeze_nothing_and_are_refused_unless_a_run_began_with_them(
    trained_run: Path, tmp_path: Path
) -> None:
    exceptions = """training.freeze=["!q_head.*", "!answer.*"]"""
    hint = """'training.freeze=["*", "!q_head.*", "!answer.*"]'"""
    for ways in ((), ("--dry-run",)):
        done = tiny.invoke("train", *ways, *tiny.as_overrides(data={"path": data_of(trained_run)}), exceptions)
        assert done.returncode == 3
        assert "training.freeze freezes nothing" in done.stderr
        assert hint in done.stderr
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["training"]["freeze"] = ["!q_head.*", "!answer.*"]
    config["training"]["run_dir"] = str(run)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    longer = config["training"]["total_steps"] + 1
    done = tiny.invoke("train", "--resume", run, f"training.total_steps={longer}", "--dry-run")
    assert done.returncode == 0, done.stderr


def data_of(run: Path) -> str:
    return str(json.loads((run / "dataset.json").read_text())["train"][0]["path"])


def test_evaluation_data_without_parents_are_refused_at_once(tmp_path: Path) -> None:
    ours = tiny.write_capsules(tmp_path / "a.h5", {"train": 40}, parents=True)
    theirs = tiny.write_capsules(tmp_path / "b.h5", {"test": 20})
    done = tiny.invoke(
        "train",
        *tiny.as_overrides(
            data={"path": ours, "eval_path": theirs},
            arch={"enable_hierarchical_attention": "true"},
            training={"run_dir": tmp_path / "run"},
        ),
    )
    assert done.returncode == 3
    assert "b.h5 has no parents, which arch.enable_hierarchical_attention=true needs" in done.stderr


def test_evaluation_data_at_other_prices_are_refused_at_once(capsule_file: Path, tmp_path: Path) -> None:
    theirs = tiny.write_capsules(tmp_path / "b.h5", {"test": 20}, prices=np.full(tiny.K, 3.0))
    done = tiny.invoke("train", *tiny.as_overrides(data={"path": capsule_file, "eval_path": theirs}), "--dry-run")
    assert done.returncode == 3
    assert "have different prices" in done.stderr


def test_a_decay_of_one_is_no_decay() -> None:
    done = tiny.invoke("train", "--dry-run", "training.betas=[0.9,1.0]")
    assert done.returncode == 3
    assert "training.betas" in done.stderr
