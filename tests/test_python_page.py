"""The blocks of docs/python.md, run one after the other as a reader would, with less training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from written_commands import blocks

from trm_core.data.store import CapsuleWriter

LESS = {
    "total_steps=300": "total_steps=30",
    "predictor_steps=200": "predictor_steps=20",
    "warmup_steps=30": "warmup_steps=2",
    "eval_interval=100": "eval_interval=10",
}


def test_the_blocks_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny.ROOT / "configs", "configs")
    code = "\n".join(blocks((tiny.ROOT / "docs/python.md").read_text(encoding="utf-8"), "python"))
    for much, little in LESS.items():
        assert code.count(much) == 1
        code = code.replace(much, little)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/python.md", "exec"), names)
    assert names["report"].num_classes == 3
    assert list(names["losses"]) == names["metrics"]["train/loss"].steps.tolist() == [10, 20, 30]
    assert 0 <= names["table"]["eval/accuracy"] <= 1
    assert [score["policy"] for score in names["record"]["scores"]] == ["learned", "learned", "never", "all"]
    assert len(names["on_demand"]) == len(names["streamed"]) == 40
    threaded = [answer for part in names["parts"] for answer in part]
    for others in (names["streamed"], threaded):
        assert [answer.prediction for answer in others] == [answer.prediction for answer in names["on_demand"]]
    assert names["beliefs"].shape == (names["answer"].steps, 3)
    assert np.allclose(names["beliefs"].sum(1), 1, atol=1e-5)
    assert Path("thinking.gif").stat().st_size > 1000


def test_labels_without_a_number_of_classes_are_named(tmp_path: Path) -> None:
    with CapsuleWriter(tmp_path / "own.h5", num_capsules=2, dim=3) as writer:
        writer.append("train", {"sketches": np.ones((4, 2, 3)), "labels": np.arange(4)})
        writer.close({})
    done = tiny.invoke("train", "--dry-run", *tiny.as_overrides(data={"path": tmp_path / "own.h5"}))
    assert done.returncode == 3
    assert "has labels, but its manifest does not say of how many classes" in done.stderr
