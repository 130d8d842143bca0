"""`trm convert`: a checkpoint of the public code becomes a run that is evaluated, and trained on, as any other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import tiny_puzzles
import torch
import yaml
from public_formulas import Sizes, weights

SIZES = Sizes(tokens=tiny_puzzles.SIZE, vocabulary=tiny_puzzles.VOCAB, puzzles=1, mlp=True, pos_encodings="none")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "public"
    folder.mkdir()
    named = {f"_orig_mod.model.inner.{name}": torch.from_numpy(value).float() for name, value in weights(SIZES).items()}
    torch.save(named, folder / "step_7")
    arch = {"H_cycles": 2, "L_cycles": 3, "num_heads": 4, "expansion": 2.0, "halt_max_steps": 3, "puzzle_emb_len": 3}
    (folder / "all_config.yaml").write_text(yaml.safe_dump({"arch": arch}))
    return folder / "step_7"


def test_a_public_checkpoint_is_evaluated_and_trained_on(checkpoint: Path, tmp_path: Path) -> None:
    data, run = tiny_puzzles.write_puzzles(tmp_path / "data"), tmp_path / "run"
    small = ["training.global_batch_size=8", "training.total_steps=4", "training.lr_warmup_steps=1"]
    done = tiny.invoke("convert", str(checkpoint), "--data", str(data), "--out", str(run), *small)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"run: {run}\n"
    assert "mixer=mlp" in done.stderr
    assert "initialised at random: q_head.value_net" in done.stderr
    scores = tiny.invoke("eval", str(run), "--json")
    assert scores.returncode == 0, scores.stderr
    assert json.loads(scores.stdout)["step"] == 0
    checkpoint.unlink()
    trained = tiny.invoke("train", "--resume", str(run))
    assert trained.returncode == 0, trained.stderr
    assert json.loads((run / "status.json").read_text())["step"] == 4


def test_the_folder_has_to_be_of_the_same_puzzles(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    torch.save(
        {name: torch.from_numpy(value).float() for name, value in weights(replace(SIZES, vocabulary=9)).items()},
        checkpoint,
    )
    data = tiny_puzzles.write_puzzles(tmp_path / "data")
    done = tiny.invoke("convert", str(checkpoint), "--data", str(data), "--out", str(other))
    assert done.returncode == 4
    assert "weight is [9, 32], but [5, 32] in this model" in done.stderr
    assert not (other / "checkpoints").exists()


def test_cycles_that_nobody_tells_are_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint.parent / "all_config.yaml").unlink()
    data, run = tiny_puzzles.write_puzzles(tmp_path / "data"), tmp_path / "run"
    sizes = ["arch.num_heads=4", "arch.ffn_expansion=2.0", "arch.puzzle_emb_len=3", "training.total_steps=2000"]
    call = ["convert", str(checkpoint), "--data", str(data), "--out", str(run), *sizes]
    done = tiny.invoke(*call, "arch.H_cycles=2")
    assert done.returncode == 3
    assert "the weights do not determine arch.L_cycles, arch.max_steps" in done.stderr
    named = tiny.invoke(*call, "arch.H_cycles=2", "arch.L_cycles=3", "arch.max_steps=3", "--json")
    assert named.returncode == 0, named.stderr
    assert json.loads(named.stdout)["run"] == str(run)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "step_1").write_bytes(b"no weights")
    done = tiny.invoke("convert", str(tmp_path / "step_1"), "--data", str(tmp_path))
    assert done.returncode == 4
    assert "is not a .pt file" in done.stderr
