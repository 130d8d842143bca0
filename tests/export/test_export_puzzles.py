"""`trm export` on runs of puzzles: every form answers as the model does, and needs no data folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_puzzles
import torch
from safetensors.torch import load_file

from trm_core.data.puzzles.meaning import guessed
from trm_core.data.puzzles.reader import open_puzzles
from trm_core.errors import CheckpointError
from trm_core.export import export as export_module
from trm_core.export.graph import traced
from trm_core.export.step import ReasoningStep
from trm_core.export.verify import compare_steps
from trm_core.inference.folder import CONFIG, WEIGHTS
from trm_core.inference.predictor import Predictor
from trm_core.inference.trained import Trained


@pytest.fixture(scope="module")
def exported(sudoku_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "all"
    done = tiny.invoke("export", sudoku_run, "--format", "all", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def exported_to_torch(sudoku_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "torch"
    done = tiny.invoke("export", sudoku_run, "--format", "torch-export", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def fields(sudoku_folder: Path) -> dict[str, Any]:
    block = open_puzzles(sudoku_folder).read("test", slice(0, 30))
    return {"tokens": block["sketches"], "puzzles": block["puzzles"]}


def test_the_folder_is_whole_and_compared(exported: Path) -> None:
    forms = json.loads((exported / "verification.json").read_text())["forms"]
    assert [form["form"] for form in forms] == ["safetensors", "torch-export", "onnx"]
    for form in forms:
        assert form["largest_difference"] < 1e-4
        assert (form["samples"], form["differing_answers"], len(form["by_step"])) == (30, 0, 3)
    record = json.loads((exported / CONFIG).read_text())
    assert record["puzzles"]["symbols"] == ["<pad>", ".", "1", "2", "3", "4"]
    assert record["step"]["inputs"] == ["z_H", "z_L", "steps", "price", "tokens", "puzzles"]
    assert "embedding.puzzles.weights" in load_file(exported / WEIGHTS)
    card = (exported / "README.md").read_text()
    for text in (
        "4 x 4 cells of a puzzle (sudoku)",
        "predict(tokens=x)",
        "trm predict FILE",
        "Measured on the test split",
    ):
        assert text in card


def test_the_folder_answers_as_the_run_does(exported: Path, sudoku_run: Path, fields: Any) -> None:
    moved = shutil.copytree(exported, exported.parent / "moved")
    of_run, of_folder = (Predictor.load(path, device="cpu").predict(**fields) for path in (sudoku_run, moved))
    for a, b in zip(of_run, of_folder, strict=True):
        assert a.as_record(True) == b.as_record(True)
    done = tiny.invoke("predict", "-", "--model", moved)
    assert "no puzzles in it" in done.stderr  # it knows what a puzzle is, and that there was none


@pytest.mark.parametrize(
    ("runner", "folder", "named"),
    [
        ("run_onnx.py", "exported", False),
        pytest.param("run_torch_export.py", "exported_to_torch", True, marks=pytest.mark.slow),
    ],
)
def test_the_runner_needs_nothing_of_ours(
    sudoku_run: Path,
    fields: Any,
    tmp_path: Path,
    runner: str,
    folder: str,
    named: bool,
    request: pytest.FixtureRequest,
) -> None:
    given = fields if named else {"tokens": fields["tokens"].astype(np.uint8)}
    np.savez(tmp_path / "samples.npz", **given)
    (tmp_path / "trm_core.py").write_text("raise ImportError('not for runners')\n")
    copy = shutil.copytree(request.getfixturevalue(folder), tmp_path / "model")
    done = subprocess.run(
        [sys.executable, str(copy / runner), "samples.npz"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for a, b in zip(Predictor.load(sudoku_run, device="cpu").predict(**fields), found, strict=True):
        assert (list(a.prediction), a.steps, []) == (b["prediction"], b["steps"], b["opened"])
        assert a.confidence == pytest.approx(b["confidence"], abs=1e-4)


@pytest.mark.parametrize("stored", ["bfloat16", "int8"])
def test_smaller_weights(sudoku_run: Path, tmp_path: Path, stored: str, fields: Any, exported: Path) -> None:
    done = tiny.invoke("export", sudoku_run, "--weights", stored, "--out", tmp_path / "small", "--json")
    assert done.returncode == 0, done.stderr
    assert 0 <= json.loads(done.stdout)["accuracy_before"] <= 1
    small, whole = (Predictor.load(path, device="cpu") for path in (tmp_path / "small", exported))
    a, b = (one.predict(**fields) for one in (small, whole))
    same = np.mean([np.equal(x.prediction, y.prediction).mean() for x, y in zip(a, b, strict=True)])
    assert same > 0.9
    assert [x.confidence for x in a] != [x.confidence for x in b]


@pytest.mark.parametrize(
    "arch",
    [
        {"pos_encodings": "rope", "enable_q_continue": True},
        {
            "pos_encodings": "learned",
            "q_head_type": "mlp",
            "probabilities": "softmax",
            "tied": False,
            "puzzle_emb_ndim": 0,
            "puzzle_emb_len": 0,
        },
        pytest.param(
            {"enable_adaptive_hcycles": True, "hcycle_confidence_threshold": 0.0, "H_cycles": 3},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["rope-continue", "learned-untied-blank", "adaptive"],
)
def test_the_step_is_the_model_whatever_its_architecture(arch: dict[str, Any]) -> None:
    arch = {**tiny_puzzles.ARCH, "max_steps": 5, "halt_threshold": 0.1, **arch}  # rows halt on either side of it
    config = tiny.make_config(arch=arch, dqn={"enabled": False})
    shape = tiny.make_shape(
        num_capsules=6, dim=0, num_children=0, checksum_dim=0, num_classes=5, label_rank=2, vocab_size=5, num_puzzles=3
    )
    fields: dict[str, Any] = {"tokens": np.random.default_rng(0).integers(0, 5, (20, 6)), "puzzles": np.arange(20) % 3}
    for seed in range(50):
        model = tiny.make_model(config, shape, seed).eval()
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name == "embedding.puzzles.weights":
                    buffer.normal_()
            for name, parameter in model.named_parameters():
                if name.startswith("q_head.") and name.endswith("net.bias"):
                    parameter.zero_()
                elif name.startswith("q_head.") and name.endswith("net.weight"):
                    parameter.normal_(std=2.0)
        trained = Trained(model, config, np.ones(6, np.float32), None, False, Path("nowhere"), puzzles=guessed(5, 6))
        expected = Predictor(trained).predict(**fields)
        if len({a.steps for a in expected}) > 1:
            break
    else:
        raise AssertionError("every row halts at the same step")
    step = ReasoningStep(trained)
    program = traced(step).module()

    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(step.output_names, program(*(inputs[name] for name in step.input_names)), strict=True))

    answers = [{"prediction": list(a.prediction), "steps": a.steps, "opened": []} for a in expected]
    found = compare_steps("program", trained, fields, run, answers)
    assert found.largest_difference < 1e-4
    assert found.differing_answers == 0
    assert len(found.by_step) > 1
    first = step.first_state(20) | {name: torch.as_tensor(values) for name, values in fields.items()}
    first |= {"steps": torch.ones(20, dtype=torch.int64), "price": torch.full((20,), model.price_level)}
    sure = run(first)["halt_logit"].sigmoid().tolist()
    assert sure == pytest.approx([a.decisions[0].halt_probability for a in expected], abs=1e-4)


def test_the_table_of_a_large_split_is_of_rows_all_over_it(
    sudoku_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "_MOST_MEASURED", 10)
    found = export_module.export_run(sudoku_run, tmp_path / "out", ["safetensors"])
    assert {score["rows"] for score in found.scores} == {10}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Measured on the 10 rows, spread over the test split" in card
    score = found.scores[0]
    assert f"| {score['policy']} | {100 * score['exact_accuracy']:.2f} | " in card
    assert "| policy | whole puzzles right, % | 95 % interval | cells right, % | steps |" in card


@pytest.mark.parametrize("change", ["gone", "kind", "symbols", "size"])
def test_a_forged_meaning_is_refused(exported: Path, tmp_path: Path, change: str) -> None:
    folder = shutil.copytree(exported, tmp_path / "forged")
    record = json.loads((folder / CONFIG).read_text())
    puzzles = record.pop("puzzles")
    if change != "gone":
        wrong = {"kind": {"kind": "chess"}, "symbols": {"symbols": ["a"]}, "size": {"width": 10**9}}[change]
        record["puzzles"] = puzzles | wrong
    (folder / CONFIG).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="does not describe a model"):
        Predictor.load(folder, device="cpu")
