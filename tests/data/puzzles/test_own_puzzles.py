"""The script of docs/puzzles.md that makes puzzles of one's own, followed by its commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from written_commands import blocks, prompts

from trm_core.data.puzzles.meaning import meaning_of
from trm_core.data.puzzles.reader import open_puzzles

PAGE = (tiny.ROOT / "docs/puzzles.md").read_text(encoding="utf-8")
SMALL = (
    "arch.hidden_size=16 arch.num_heads=2 arch.puzzle_emb_ndim=16 training.total_steps=4 training.lr_warmup_steps=1 "
    "training.global_batch_size=8 training.eval_interval=4 training.checkpoint_interval=4 training.threads=1 "
    "training.device=cpu"
)


def test_the_script_makes_a_folder_that_trains_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (script,) = blocks(PAGE, "python")
    exec(compile(script, "docs/puzzles.md", "exec"), {})
    data = open_puzzles("data/latin")
    assert meaning_of(data).by_symbols
    train, test = (data.read(split, slice(None))["labels"] for split in ("train", "test"))
    assert len(test) == 200
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in test}
    squares = np.concatenate([train, test]).reshape(-1, 5, 5)
    for lines in (squares, squares.swapaxes(1, 2)):
        assert (np.sort(lines, -1) == np.arange(2, 7)).all()
    inspected = tiny.invoke("inspect-dataset", "data/latin")
    assert inspected.returncode == 0, inspected.stdout + inspected.stderr
    assert "no problems found" in inspected.stdout
    (train_command,) = (line for line in prompts(PAGE) if "name=latin" in line)
    words = train_command.removeprefix("trm train --config configs/sudoku4_cpu.yaml ").split()
    config = str(tiny.ROOT / "configs/sudoku4_cpu.yaml")
    done = tiny.invoke("train", "--config", config, *words, "training.run_dir=runs/latin", *SMALL.split())
    assert done.returncode == 0, done.stderr
    (asked,) = (line.split()[1] for line in prompts(PAGE) if line.startswith("echo 12..5"))
    answered = tiny.invoke("predict", "--ask", asked, "--model", "runs/latin")
    assert answered.returncode == 0, answered.stderr
    answer = json.loads(answered.stdout)["answer"]
    assert len(answer) == 25
    assert set(answer) <= set("?.12345")
