"""`trm train` from the command line to the run directory: results, refusals, interruption, exact resume."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tiny
from forked import Forked

from trm_core.config import load_config
from trm_core.dqn.replay import ReplayBuffer
from trm_core.errors import CheckpointError, StoppedEarly
from trm_core.prepare import RunHooks
from trm_core.runs import train_run
from trm_core.training import checkpoint_verify
from trm_core.training.run_dir import locked
from trm_core.training.state import TrainingState
from trm_core.training.stopping import StopFlag, stop_on_signals

FILES = {
    "config.yaml",
    "status.json",
    "metrics.jsonl",
    "dataset.json",
    "environment.json",
    "evaluation.json",
    "checkpoints",
}


def overrides(path: Path, run: Path, **sections: dict[str, Any]) -> list[str]:
    mine: dict[str, dict[str, Any]] = {"data": {"path": path}, "training": {"run_dir": run}}
    names = mine.keys() | sections.keys()
    return tiny.as_overrides(**{name: {**mine.get(name, {}), **sections.get(name, {})} for name in names})


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def hashes(run: Path) -> dict[str, str]:
    """Of the tensors in the newest checkpoint."""
    newest = max((run / "checkpoints").glob("step_*"))
    assert newest.name == f"step_{read_json(run / 'status.json')['step']:08d}"
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in newest.glob("*.safetensors")}


def test_a_run_leaves_what_the_design_promises(trained_run: Path, capsule_file: Path) -> None:
    names = {p.name for p in trained_run.iterdir() if not p.name.startswith(".")}
    assert names >= FILES
    status = read_json(trained_run / "status.json")
    assert (status["state"], status["step"], status["total_steps"], status["exit_code"]) == ("done", 60, 60, 0)
    steps = [line["step"] for line in tiny.metrics_without_clock(trained_run) if "train/loss" in line]
    assert steps == list(range(1, 61))
    evaluated = [line for line in tiny.metrics_without_clock(trained_run) if "eval/accuracy" in line]
    assert [line["step"] for line in evaluated] == [20, 40]
    best = (trained_run / "checkpoints" / "best").read_text().strip()
    first_best = max(evaluated, key=lambda line: line["eval/accuracy"])["step"]
    assert best == f"step_{first_best:08d}"
    assert (trained_run / "checkpoints" / best / "manifest.json").exists()
    dataset = read_json(trained_run / "dataset.json")
    assert dataset["train"][0]["path"] == str(capsule_file)
    assert dataset["eval"]["split"] == "validation"
    evaluation = read_json(trained_run / "evaluation.json")
    assert evaluation["step"] == 60
    assert [score["policy"] for score in evaluation["scores"]] == ["learned", "threshold", "never", "all", "random"]
    assert {score["rows"] for score in evaluation["scores"]} == {40}
    [start] = read_json(trained_run / "environment.json")["starts"]
    assert start["packages"]["torch"]


def test_json_is_one_document_on_stdout(tmp_path: Path, capsule_file: Path) -> None:
    done = tiny.run_trm("train", "--json", *overrides(capsule_file, tmp_path / "run"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["run"] == str(tmp_path / "run")
    assert document["step"] == 12
    assert document["scores"] == read_json(tmp_path / "run" / "evaluation.json")["scores"]
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr


def test_text_ends_with_the_run_directory(tmp_path: Path, capsule_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [a for a in overrides(capsule_file, tmp_path) if "run_dir" not in a]
    done = tiny.invoke("train", "name=mine", *arguments)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"run: runs/mine-\d{8}-\d{6}", last)
    assert Path(last.removeprefix("run: "), "evaluation.json").exists()
    for policy in ("learned", "threshold", "never", "all", "random"):
        assert re.search(rf"^{policy}\b", done.stdout, re.M)
    # `trm eval` without an argument takes this run, and its table is the same.
    again = tiny.invoke("eval")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines() == done.stdout.splitlines()[:-1]


REFUSALS: list[tuple[str, dict[str, dict[str, Any]], int, str]] = [
    ("unknown key", {"training": {"base_lrr": 1}}, 3, "base_lr"),
    ("range", {"dqn": {"gamma": 2}}, 3, "dqn.gamma"),
    ("contradiction", {"arch": {"q_head_num_actions": 2}, "dqn": {"expand_count": 9}}, 3, "q_head_num_actions"),
    ("both problems", {"arch": {"q_head_num_actions": 2}, "dqn": {"expand_count": 9}}, 3, "dqn.expand_count=9"),
    ("small replay", {"dqn": {"buffer_capacity": 20}}, 3, "dqn.buffer_capacity"),
    ("missing file", {"data": {"path": "/nowhere/file.h5"}}, 4, "/nowhere/file.h5"),
    ("no data", {"data": {"path": "null"}}, 3, "data.path"),
    (
        "memory wider than z_H",
        {"memory": {"enabled": "true", "key_dim": 64, "num_heads": 2}},
        3,
        "memory.key_dim=64 is wider than arch.hidden_size=16",
    ),
    ("memory heads", {"memory": {"enabled": "true", "num_heads": 3}}, 3, "change memory.num_heads"),
    ("no parents", {"arch": {"enable_hierarchical_attention": "true"}}, 3, "has no parents"),
    ("one answer", {"arch": {"enable_mtp": "true"}}, 3, "arch.enable_mtp=true"),
    ("runs without memory", {"dqn": {"sequence_length": 2}}, 3, "dqn.sequence_length=2 is for arch.q_head_type=rnn"),
    (
        "runs longer than episodes",
        {"arch": {"q_head_type": "rnn"}, "dqn": {"sequence_length": 9}},
        3,
        "longer than an episode of arch.max_steps=3",
    ),
    ("two rules of halting", {"arch": {"enable_q_continue": "true"}}, 3, "arch.enable_q_continue=true"),
    ("nothing to leave", {"arch": {"enable_adaptive_hcycles": "true"}}, 3, "arch.H_cycles=1"),
    ("many tokens", {"arch": {"q_head_type": "attention", "q_head_tokens": 9}}, 3, "arch.q_head_tokens=9"),
]


@pytest.mark.parametrize(("changes", "code", "words"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_refusals_leave_nothing(
    changes: dict[str, dict[str, Any]], code: int, words: str, tmp_path: Path, capsule_file: Path
) -> None:
    done = tiny.invoke("train", *overrides(capsule_file, tmp_path / "run", **changes))
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_data_that_cannot_be_trained_on(tmp_path: Path) -> None:
    for rows, changes, words in (
        ({"test": 10}, {}, "no train split"),
        ({"train": 10}, {"classes": 1}, "all training labels are 0"),
    ):
        path = tiny.write_capsules(tmp_path / f"{len(list(tmp_path.iterdir()))}.h5", rows, **changes)
        done = tiny.invoke("train", *overrides(path, tmp_path / "run"))
        assert done.returncode == 4
        assert words in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "value"), [("children", np.nan), ("sketches", np.inf)])
def test_data_that_make_the_scale_of_the_input_nan(tmp_path: Path, name: str, value: float) -> None:
    """Every step would be NaN, at any rate."""
    path = tiny.write_capsules(tmp_path / "a.h5", {"train": 30, "validation": 10})
    with h5py.File(path, "r+") as file:
        file[f"train/{name}"][5, 1] = value
    done = tiny.invoke("train", *overrides(path, tmp_path / "run"))
    assert done.returncode == 4, done.stderr
    assert f"{path}: train/{name}: row 5 holds NaN or infinity" in done.stderr


def test_a_folder_in_use_or_not_empty_is_refused(tmp_path: Path, capsule_file: Path, trained_run: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    done = tiny.invoke("train", *overrides(capsule_file, run))
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert [p.name for p in run.iterdir()] == ["notes.txt"]
    copy = tmp_path / "copy"
    shutil.copytree(trained_run, copy)
    before = (copy / "status.json").read_text()
    with locked(copy):
        done = tiny.invoke("train", "--resume", copy)
    assert done.returncode == 2
    assert "in use" in done.stderr
    assert (copy / "status.json").read_text() == before


def test_dry_run_writes_nothing(tmp_path: Path, capsule_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = tiny.invoke("train", "--dry-run", "--json", *overrides(capsule_file, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["shapes"]["capsules k"] == tiny.K
    assert document["shapes"]["steps per epoch"] == 12.0
    features = {f["feature"]: f for f in document["features"]}
    assert features["enable_capsule_expansion"]["on"]
    assert not features["enable_memory"]["on"]
    assert all(f["reason"] for f in document["features"])
    assert list(tmp_path.iterdir()) == []
    text = tiny.invoke("train", "--dry-run", *overrides(capsule_file, tmp_path / "run"))
    assert "enable_dqn" in text.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "on", "reason"),
    [
        ({}, False, "epsilon explores; the term would bias Q"),
        ({"enable_entropy_regularization": "true"}, False, "dqn.entropy_regularization_weight is 0"),
        ({"entropy_regularization_weight": 0.05}, False, "dqn.entropy_regularization_weight=0.05 alone does nothing"),
        ({"enable_entropy_regularization": "true", "entropy_regularization_weight": 0.05}, True, "weight 0.05"),
    ],
)
def test_a_dry_run_says_why_the_entropy_term_is_off(
    tmp_path: Path, capsule_file: Path, changes: dict[str, Any], on: bool, reason: str
) -> None:
    done = tiny.invoke("train", "--dry-run", "--json", *overrides(capsule_file, tmp_path / "run", dqn=changes))
    assert done.returncode == 0, done.stderr
    found = {each["feature"]: each for each in json.loads(done.stdout)["features"]}["enable_entropy_regularization"]
    assert (found["on"], found["reason"]) == (on, reason)
    assert done.stderr.count("note: ") == (len(changes) == 1), done.stderr


def test_a_dry_run_refuses_what_training_refuses(tmp_path: Path, capsule_file: Path, trained_run: Path) -> None:
    odd = tiny.invoke("train", "--dry-run", "--nproc", "3", *overrides(capsule_file, tmp_path / "run"))
    assert odd.returncode == 3
    assert "training.global_batch_size=8 cannot be divided evenly among 3 processes" in odd.stderr
    other = tiny.invoke("train", "--dry-run", "--resume", trained_run, "arch.hidden_size=32")
    assert other.returncode == 3
    assert "arch.hidden_size: 16 -> 32" in other.stderr
    same = tiny.invoke("train", "--dry-run", "--resume", trained_run, "training.base_lr=0.002")
    assert same.returncode == 0, same.stderr
    assert "changed on resume: training.base_lr" in same.stderr
    many = tiny.write_capsules(tmp_path / "many.h5", {"train": 20, "validation": 4}, label_rank=2)
    halves = tiny.write_capsules(tmp_path / "halves.h5", {"train": 20, "validation": 4})
    for asked, code, words in (
        ({"training": {"run_dir": trained_run}}, 2, "is not empty"),
        ({"training": {"init_from": tmp_path / "nothing"}}, 4, "nothing has no checkpoint"),
        ({"data": {"path": f'["{capsule_file}","{many}"]'}}, 3, "these files cannot be mixed"),
        ({"data": {"path": capsule_file, "eval_path": many}}, 3, "has label_rank=2"),
        ({"data": {"path": halves, "eval_split": "test"}}, 3, "data.eval_split=test"),
    ):
        for dry in ([], ["--dry-run"]):
            refused = tiny.invoke("train", *dry, *overrides(capsule_file, tmp_path / "run", **asked))
            assert refused.returncode == code, refused.stderr
            assert words in refused.stderr


def test_a_dry_run_is_of_one_of_the_processes(tmp_path: Path, capsule_file: Path) -> None:
    """Each has a part of the batch, and a replay buffer of its own."""
    settings = overrides(capsule_file, tmp_path / "run", training={"global_batch_size": 512})
    capacity = 2 * 256 * 3
    settings += [f"dqn.buffer_capacity={capacity}", "--json"]
    alone = tiny.invoke("train", "--dry-run", *settings)
    assert alone.returncode == 3
    assert f"at least {2 * capacity} (2 * training.global_batch_size * arch.max_steps)" in alone.stderr
    assert "or training.global_batch_size=256" in alone.stderr
    smaller = tiny.invoke("train", "--dry-run", *settings, "training.global_batch_size=256")
    assert smaller.returncode == 0, smaller.stderr
    two, four = (tiny.invoke("train", "--dry-run", "--nproc", n, *settings) for n in ("2", "4"))
    activations = [json.loads(done.stdout)["memory_mb"]["activations"] for done in (two, four)]
    assert 0.4 < activations[1] / activations[0] < 0.6


def test_what_was_chosen_and_what_does_nothing_is_said(tmp_path: Path, capsule_file: Path, sudoku_folder: Path) -> None:
    steps = {"total_steps": 1, "lr_warmup_steps": 0}
    for dry in ([], ["--dry-run"]):
        done = tiny.invoke("train", *dry, *overrides(capsule_file, tmp_path / f"run{len(dry)}", training=steps))
        assert done.returncode == 0, done.stderr
        for line in (
            "device cpu",
            "EXPAND on: tiny.h5 has 2 children per capsule",
            "Q-learning on: EXPAND needs a policy",
        ):
            assert line in done.stderr
    unheeded = {"data": {"num_workers": 1}, "loss_weights": {"reconstruction_loss": 2}}
    done = tiny.invoke("train", "--dry-run", *overrides(sudoku_folder, tmp_path / "puzzles", **unheeded))
    assert done.returncode == 0, done.stderr
    assert "data.num_workers has no effect on puzzles" in done.stderr
    assert "loss_weights.reconstruction_loss has no effect: puzzles have no sketches to predict" in done.stderr
    assert "Q-learning off: halting by the halt logit" in done.stderr


def test_sketches_are_reconstructed_where_nothing_is_opened(tmp_path: Path, capsule_file: Path) -> None:
    """So its weight is not said to do nothing."""
    losses = []
    for weight in (0, 2):
        closed = {"arch": {"enable_capsule_expansion": False}, "loss_weights": {"reconstruction_loss": weight}}
        done = tiny.invoke("train", *overrides(capsule_file, tmp_path / f"run{weight}", **closed))
        assert done.returncode == 0, done.stderr
        assert "reconstruction_loss has no effect" not in done.stderr
        lines = (tmp_path / f"run{weight}" / "metrics.jsonl").read_text().splitlines()
        losses.append(json.loads(lines[-1])["train/loss"])
    assert losses[0] != losses[1]


def test_without_a_policy_nothing_is_opened(tmp_path: Path, capsule_file: Path) -> None:
    done = tiny.invoke("train", "--dry-run", "--json", *overrides(capsule_file, tmp_path / "run"), "dqn.enabled=false")
    assert done.returncode == 0, done.stderr
    features = {f["feature"]: f for f in json.loads(done.stdout)["features"]}
    assert not features["enable_capsule_expansion"]["on"]
    assert "dqn.enabled=false" in features["enable_capsule_expansion"]["reason"]
    both = [*overrides(capsule_file, tmp_path / "run"), "dqn.enabled=false", "arch.enable_capsule_expansion=true"]
    done = tiny.invoke("train", "--dry-run", *both)
    assert done.returncode == 3
    assert "dqn.enabled=false leaves nothing to choose EXPAND" in done.stderr


def test_the_best_is_the_best_of_what_is_evaluated_now(tmp_path: Path, capsule_file: Path) -> None:
    """The accuracy on another split says nothing about those before."""
    run = tmp_path / "run"
    settings = {"training": {"total_steps": 8, "eval_interval": 2}}
    training = {"training": {**settings["training"], "stop_at_step": 4}}
    first = tiny.invoke("train", *overrides(capsule_file, run, data={"eval_split": "train"}, **training))
    assert first.returncode == 75, first.stderr
    newest = max((run / "checkpoints").glob("step_*"))
    state = json.loads((newest / "state.json").read_text()) | {"best": 1.0}
    (newest / "state.json").write_text(json.dumps(state))
    tiny.vouch_for(newest)
    shutil.copytree(run, tmp_path / "same")
    again = overrides(capsule_file, run, data={"eval_split": "validation"}, **settings)
    second = tiny.invoke("train", "--resume", "auto", *again)
    assert second.returncode == 0, second.stderr
    assert "the best accuracy so far, 1.0000, was measured on other rows" in second.stderr
    assert (run / "checkpoints" / "best").read_text() == "step_00000006\n"
    same = overrides(capsule_file, tmp_path / "same", data={"eval_split": "train"}, **settings)
    third = tiny.invoke("train", "--resume", "auto", *same)
    assert "was measured on other rows" not in third.stderr
    assert (tmp_path / "same" / "checkpoints" / "best").read_text() < "step_00000005"


def test_divergence_ends_with_5_and_says_what_was_tried(tmp_path: Path, capsule_file: Path) -> None:
    """A rate at which the first update ruins the weights: going back to its checkpoint thrice does not help."""
    run = tmp_path / "run"
    training = {"base_lr": 1e9, "optimizer": "adamw", "lr_warmup_steps": 0, "checkpoint_interval": 1}
    done = tiny.invoke("train", *overrides(capsule_file, run, training=training))
    assert done.returncode == 5
    assert "the loss is not finite (lm_loss" in done.stderr
    assert "3 rollbacks did not help" in done.stderr
    assert "training.base_lr=6.25e+07" in done.stderr, "half of the eighth that was tried last"
    status = read_json(run / "status.json")
    assert (status["state"], status["exit_code"], status["step"]) == ("failed", 5, 5)
    assert tiny.invoke("checkpoints", run).returncode == 0


# Dropout uses torch's generator, the replay wraps around, the data goes through several epochs, the predictor stops
# at 18.
VARIANTS = {
    "adamatan2, before the predictor stops": ({"stop_at_step": 10}, {"target_tau": 0.1}),
    "adamw, where the predictor stops": ({"stop_at_step": 18, "optimizer": "adamw"}, {"target_update_freq": 7}),
    "muon, after it, no average": (
        {"stop_at_step": 21, "optimizer": "muon", "ema_decay": "null"},
        {"max_age": 5, "expansion_selector": "random"},
    ),
}


@pytest.mark.parametrize(
    ("training", "dqn"),
    [
        next(iter(VARIANTS.values())),
        *(pytest.param(*rest, marks=pytest.mark.slow) for rest in list(VARIANTS.values())[1:]),
    ],
    ids=list(VARIANTS),
)
def test_stopped_and_resumed_equals_uninterrupted(
    training: dict[str, Any], dqn: dict[str, Any], tmp_path: Path, capsule_file: Path
) -> None:
    common = {"total_steps": 25, "predictor_steps": 18, "eval_interval": 8, "checkpoint_interval": 6}
    sections = {"dqn": {"buffer_capacity": 60, **dqn}, "arch": {"dropout": 0.1}}
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    uninterrupted = {key: value for key, value in training.items() if key != "stop_at_step"}
    done = tiny.invoke("train", *overrides(capsule_file, whole, training={**common, **uninterrupted}, **sections))
    assert done.returncode == 0, done.stderr
    stopped = tiny.invoke("train", *overrides(capsule_file, halves, training={**common, **training}, **sections))
    assert stopped.returncode == 75, stopped.stderr
    status = read_json(halves / "status.json")
    assert (status["state"], status["exit_code"], status["step"]) == ("stopped", 75, training["stop_at_step"])
    # Exactly what the hint says.
    command = re.search(r"trm (train --resume .*)", stopped.stderr)
    assert command is not None
    with (halves / "metrics.jsonl").open("a") as file:
        file.write('{"step": 24, "train/loss": 0}\n{"step": 2')  # as a killed process leaves them
    done = tiny.invoke(*command[1].split())
    assert done.returncode == 0, done.stderr
    assert read_json(halves / "status.json")["state"] == "done"
    assert hashes(halves) == hashes(whole)
    assert tiny.metrics_without_clock(halves) == tiny.metrics_without_clock(whole)
    scores = [read_json(run / "evaluation.json")["scores"] for run in (halves, whole)]
    assert scores[0] == scores[1]


def test_resume_goes_back_past_a_damaged_checkpoint(tmp_path: Path, trained_run: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    newest = run / "checkpoints" / "step_00000060"
    path = newest / "training.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = tiny.invoke("train", "--resume", run)
    assert done.returncode == 0, done.stderr
    assert "going back one checkpoint" in done.stderr
    assert str(path) in done.stderr
    assert "resuming from step_00000050" in done.stderr
    assert hashes(run) == hashes(trained_run)
    assert tiny.metrics_without_clock(run) == tiny.metrics_without_clock(trained_run)


def test_resume_deletes_nothing_that_may_be_whole(
    tmp_path: Path, trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what the disk did not give this time, nor anything before the older one is known to be of use."""
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    before = sorted((run / "checkpoints").iterdir())
    newest = max((run / "checkpoints").glob("step_*"))
    real = checkpoint_verify.describe

    def stale(path: Path, sync: bool = False) -> dict[str, Any]:
        if path.parent == newest:
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return real(path, sync)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_verify, "describe", stale)
        done = tiny.invoke("train", "--resume", run, "training.total_steps=62")
    assert done.returncode == 4
    assert f"{newest} cannot be read: Stale file handle" in done.stderr
    assert sorted((run / "checkpoints").iterdir()) == before
    (newest / "model.safetensors").write_bytes(b"")

    def refuse(*arguments: object) -> None:
        raise CheckpointError("does not fit")

    with monkeypatch.context() as patched:
        patched.setattr(TrainingState, "restore", refuse)
        done = tiny.invoke("train", "--resume", run, "training.total_steps=62")
    assert done.returncode == 4
    assert sorted((run / "checkpoints").iterdir()) == before


def test_a_drifted_config_is_refused_and_rates_are_not(tmp_path: Path, trained_run: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in ("log.txt", ".lock")}
    done = tiny.invoke("train", "--resume", run, "arch.L_cycles=2", "dqn.gamma=0.5")
    assert done.returncode == 3
    assert "arch.L_cycles: 1 -> 2" in done.stderr
    assert "dqn.gamma: 0.99 -> 0.5" in done.stderr
    assert all(p.read_bytes() == content for p, content in before.items())
    done = tiny.invoke("train", "--resume", run, "training.base_lr=1e-5", "training.total_steps=62")
    assert done.returncode == 0, done.stderr
    assert "changed on resume: training.base_lr: 0.003 -> 1e-05" in done.stderr
    assert tiny.metrics_without_clock(run)[-1]["train/lr"] <= 1e-5
    assert read_json(run / "status.json")["step"] == 62


def test_fewer_steps_than_a_run_has_taken_are_refused(tmp_path: Path, trained_run: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    step = read_json(run / "status.json")["step"]
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    for extra in ((), ("--dry-run",)):
        done = tiny.invoke("train", "--resume", run, f"training.total_steps={step - 1}", "--json", *extra)
        assert done.returncode == 3, done.stderr
        assert f"error: {run} is already at step {step}, past training.total_steps={step - 1}" in done.stderr
        assert json.loads(done.stdout)["exit_code"] == 3
        assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"} == before
    assert tiny.invoke("train", "--resume", run, f"training.total_steps={step}").returncode == 0


def test_resume_needs_a_run(tmp_path: Path, capsule_file: Path) -> None:
    done = tiny.invoke("train", "--resume", tmp_path / "nothing")
    assert done.returncode == 4
    assert "not a run directory" in done.stderr
    assert tiny.invoke("train", "--resume", "auto", f"data.path={capsule_file}").returncode == 2
    started = tiny.invoke("train", "--resume", "auto", *overrides(capsule_file, tmp_path / "run"))
    assert started.returncode == 0, "auto starts a run where there is none"


def test_signals_save_and_stop_and_the_run_goes_on(tmp_path: Path, capsule_file: Path) -> None:
    run = tmp_path / "run"
    process = Forked("train", *overrides(capsule_file, run, training={"total_steps": 100_000}), cwd=tmp_path)
    try:
        tiny.wait_for_step(process, run, 3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=180)
        assert process.returncode == 130, err
        assert out == ""
        assert "Traceback" not in err
        status = read_json(run / "status.json")
        assert (status["state"], status["exit_code"]) == ("interrupted", 130)
        reached = status["step"]
        assert len(hashes(run)) == 3

        process = Forked("train", "--resume", run, cwd=tmp_path)
        tiny.wait_for_step(process, run, reached + 3)
        refused = tiny.invoke("train", "--resume", run)
        assert refused.returncode == 2
        assert "in use" in refused.stderr
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=180)
        assert process.returncode == 75, err
        assert f"resuming from step_{reached:08d}" in err
        status = read_json(run / "status.json")
        assert (status["state"], status["exit_code"]) == ("stopped", 75)
        assert status["step"] >= reached + 3
        steps = [line["step"] for line in tiny.metrics_without_clock(run)]
        assert steps == list(range(1, status["step"] + 1)), "no step is logged twice or left out"
        assert len(hashes(run)) == 3
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_priorities_are_updated_before_new_states_take_the_slots(
    tmp_path: Path, capsule_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a ring this small the states of a step overwrite transitions that the same step replayed."""
    calls: list[str] = []
    for name in ("sample", "update_priorities", "push"):
        method = getattr(ReplayBuffer, name)

        def spy(self: ReplayBuffer, *given: Any, name: str = name, method: Any = method) -> Any:
            calls.append(name)
            return method(self, *given)

        monkeypatch.setattr(ReplayBuffer, name, spy)
    overrides = tiny.as_overrides(
        data={"path": capsule_file},
        training={"run_dir": tmp_path / "run", "total_steps": 20},
        dqn={"replay": "prioritized", "buffer_capacity": 48, "buffer_min_size": 8},
    )
    done = tiny.invoke("train", *overrides)
    assert done.returncode == 0, done.stderr
    assert calls.count("update_priorities") > 10
    after = [following for call, following in itertools.pairwise(calls) if call == "sample"]
    assert set(after) == {"update_priorities"}


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
runpy.run_module("trm_cli.main", run_name="__main__")
"""


@pytest.mark.slow
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path: Path, capsule_file: Path) -> None:
    """No file may grow past 60 kB: the lines of metrics go on, checkpoints do not."""
    run = tmp_path / "run"
    first = overrides(capsule_file, run, training={"total_steps": 12, "stop_at_step": 4, "checkpoint_interval": 2})
    assert tiny.invoke("train", *first).returncode == 75
    good = sorted((run / "checkpoints").iterdir())
    assert (good[-1] / "training.safetensors").stat().st_size > 60_000
    command = [sys.executable, "-c", LIMITED, "60000", "train", "--resume", "auto", *first]
    full = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=tiny.environment(tmp_path)
    )
    assert full.returncode == 6, full.stderr
    assert full.stderr.count("training goes on") == 3, "after steps 6, 8 and 10"
    assert [line["step"] for line in tiny.metrics_without_clock(run) if "train/loss" in line] == list(range(1, 13))
    assert sorted((run / "checkpoints").iterdir()) == good, "older checkpoints stay, nothing half-written is left"
    assert tiny.invoke("checkpoints", run).returncode == 0
    again = tiny.invoke("train", "--resume", "auto", *first)
    assert again.returncode == 0, again.stderr
    assert read_json(run / "status.json")["step"] == 12


@pytest.mark.parametrize("more", [[], pytest.param(["--nproc", "2"], marks=pytest.mark.slow)])
def test_a_signal_while_it_starts_stops_it(
    tmp_path: Path, capsule_file: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    """The import of torch takes seconds, in which a job may be asked to make room."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Asked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Asked())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    settings = tiny.as_overrides(data={"path": capsule_file}, training={"run_dir": tmp_path / "run"})
    done = tiny.run_trm("train", *settings, *more, cwd=tmp_path)
    assert done.returncode == 75, done.stderr
    assert done.stderr == "stopped: stopped before training began\nhint: run the same command again\n"
    assert not (tmp_path / "run").exists()


def test_a_signal_while_data_is_built_stops_and_keeps_what_was_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRM_CACHE", str(tmp_path / "cache"))
    tiny_run = tiny.as_overrides(data={"source": "digits"}, training={"run_dir": tmp_path / "run", "total_steps": 2})
    loaded = load_config(None, tiny_run)
    encoded: list[int] = []

    def signalled(stage: str, done: int, total: int) -> None:
        if stage == "encode" and done:
            encoded.append(done)
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(StoppedEarly, match="stopped while building"), stop_on_signals() as stop:
        train_run(loaded, None, RunHooks(on_build=signalled), stop)
    assert len(encoded) == 1, "it ended at once"
    assert not (tmp_path / "run").exists()
    said: list[str] = []
    result = train_run(loaded, None, RunHooks(log=said.append), StopFlag())
    assert result is not None
    assert any("continued an earlier run" in message for message in said), said
