"""`trm export` on trained runs: every form answers as the model does, and what does not is not written."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from trm_core.data.store import open_capsules
from trm_core.errors import CheckFailed, CheckpointError
from trm_core.export import export as export_module
from trm_core.export.export import export_run
from trm_core.export.graph import traced
from trm_core.export.step import ReasoningStep
from trm_core.export.verify import compare_steps
from trm_core.inference.folder import CONFIG, WEIGHTS, sha256_of
from trm_core.inference.predictor import Predictor
from trm_core.inference.trained import Trained


@pytest.fixture(scope="module")
def exported(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "all"
    done = tiny.invoke("export", trained_run, "--format", "all", "--out", folder, "--license", "apache-2.0")
    assert done.returncode == 0, done.stderr
    assert f"exported: {folder}" in done.stdout
    return folder


@pytest.fixture(scope="module")
def exported_to_torch(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "torch"
    done = tiny.invoke("export", trained_run, "--format", "torch-export", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def fields(capsule_file: Path) -> dict[str, Any]:
    with open_capsules(capsule_file) as file:
        return file.read("test", slice(0, 30), ["sketches", "children"])


def test_the_folder_is_whole(exported: Path) -> None:
    names = {path.name for path in exported.iterdir()}
    assert names == {
        "README.md", "config.json", "model.safetensors", "run_onnx.py", "run_torch_export.py", "step.onnx", "step.pt2",
        "verification.json",
    }  # fmt: skip
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    for text in ("| learned |", "| never |", "| all |", "run_onnx.py", "Predictor.load"):
        assert text in card
    forms = json.loads((exported / "verification.json").read_text())["forms"]
    assert [form["form"] for form in forms] == ["safetensors", "torch-export", "onnx"]
    for form in forms:
        assert form["largest_difference"] < 1e-4
        assert len(form["by_step"]) >= 1
        assert form["samples"] == 40
    assert "/" not in json.loads((exported / CONFIG).read_text())["about"]["data"]


def test_the_card_names_what_was_overridden(exported: Path, trained_run: Path, tmp_path: Path) -> None:
    overrides = ["dqn.budget=1", "arch.H_cycles=2", "arch.L_cycles=1"]
    done = tiny.invoke("export", trained_run, *overrides, "--out", tmp_path / "other")
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "other" / "README.md").read_text()
    said = "Overrides of the export:"
    assert f"{said}\n\n- arch.H_cycles: 1 -> 2\n- dqn.budget: None -> 1.0\n\n" in card
    assert said not in (exported / "README.md").read_text()


def test_the_folder_answers_as_the_run_does(exported: Path, trained_run: Path, fields: Any) -> None:
    of_run, of_folder = (Predictor.load(path, device="cpu").predict(**fields) for path in (trained_run, exported))
    for a, b in zip(of_run, of_folder, strict=True):
        assert a.as_record(True) == b.as_record(True)


@pytest.mark.parametrize(
    ("runner", "folder"),
    [
        ("run_onnx.py", "exported"),
        pytest.param("run_torch_export.py", "exported_to_torch", marks=pytest.mark.slow),
    ],
)
def test_the_runner_needs_nothing_of_ours(
    trained_run: Path, fields: Any, tmp_path: Path, runner: str, folder: str, request: pytest.FixtureRequest
) -> None:
    """Started as its docstring says, where trm cannot be imported."""
    np.savez(tmp_path / "samples.npz", **fields)
    (tmp_path / "trm_core.py").write_text("raise ImportError('not for runners')\n")
    command = [sys.executable, str(shutil.copytree(request.getfixturevalue(folder), tmp_path / "model") / runner)]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "samples.npz"], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    expected = Predictor.load(trained_run, device="cpu").predict(**fields)
    for a, b in zip(expected, found, strict=True):
        assert list(a.prediction) == b["prediction"]
        assert (a.steps, sorted(a.opened)) == (b["steps"], b["opened"])
        assert a.confidence == pytest.approx(b["confidence"], abs=1e-4)


@pytest.mark.parametrize("runner", ["run_onnx.py", "run_torch_export.py"])
def test_a_runner_says_how_it_is_called(
    runner: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [runner, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(Path(export_module.__file__).parent / "runners" / runner), run_name="__main__")
    assert end.value.code == 0
    assert "children may be a function" in capsys.readouterr().out


def test_runners_are_short() -> None:
    for path in (Path(export_module.__file__).parent / "runners").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 64


def test_a_runner_asks_only_for_what_is_opened(exported: Path, fields: Any) -> None:
    model = runpy.run_path(str(exported / "run_onnx.py"))["Model"](exported)
    asked: list[tuple[int, int]] = []

    def children(row: int, capsule: int) -> Any:
        asked.append((int(row), int(capsule)))
        return fields["children"][row, capsule]

    answers = model(fields["sketches"], children)
    assert sorted(asked) == [(row, capsule) for row, answer in enumerate(answers) for capsule in answer["opened"]]


@pytest.mark.slow
def test_a_run_in_bfloat16_is_exported_in_float32(capsule_file: Path, tmp_path: Path) -> None:
    """Its graphs would be bfloat16 otherwise, which the runtime cannot compute and which is not the model."""
    training = {"run_dir": tmp_path / "run", "total_steps": 4, "precision": "bfloat16"}
    assert tiny.invoke("train", *tiny.as_overrides(data={"path": capsule_file}, training=training)).returncode == 0
    done = tiny.invoke("export", tmp_path / "run", "--format", "all", "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert Predictor.load(tmp_path / "out", device="cpu").trained.config.training.precision == "float32"


@pytest.mark.parametrize("stored", ["bfloat16", "int8"])
def test_smaller_weights(trained_run: Path, tmp_path: Path, stored: str, fields: Any, exported: Path) -> None:
    done = tiny.invoke("export", trained_run, "--weights", stored, "--out", tmp_path / "small", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert 0 <= record["accuracy_before"] <= 1
    assert f"Stored as {stored}" in (tmp_path / "small" / "README.md").read_text()
    whole, small = load_file(exported / WEIGHTS), load_file(tmp_path / "small" / WEIGHTS)
    sizes = [sum(t.nbytes for t in tensors.values() if t.dim() > 1) for tensors in (whole, small)]
    assert sizes[1] < (0.55 if stored == "bfloat16" else 0.5) * sizes[0]
    predictor, original = Predictor.load(tmp_path / "small", device="cpu"), Predictor.load(exported, device="cpu")
    for (name, a), b in zip(
        predictor.trained.model.state_dict().items(), original.trained.model.state_dict().values(), strict=True
    ):
        if a.dim() < 2 or a.dtype != torch.float32:
            assert torch.equal(a, b), name
        else:
            largest = b.flatten(1).abs().amax(1).view(-1, *(1,) * (b.dim() - 1))
            assert bool(((a - b).abs() <= largest * (2**-8 if stored == "bfloat16" else 0.51 / 127)).all()), name
    assert len(predictor.predict(**fields)) == 30


@pytest.mark.parametrize(
    "sections",
    [
        {"arch": {"q_head_type": "rnn", "enable_adaptive_hcycles": True, "H_cycles": 3}},
        {"dqn": {"expansion_selector": "checksum", "budget": 2.0, "expand_count": 3}},
        *(
            pytest.param(sections, marks=pytest.mark.slow)
            for sections in (
                {
                    "memory": {"enabled": True, "capacity": 16, "num_heads": 2, "top_k": 2},
                    "arch": {"enable_concepts": True, "num_concepts": 8},
                },
                {"dqn": {"expansion_selector": "attention"}, "arch": {"q_head_type": "attention", "readout": "mean"}},
                {"dqn": {"expansion_selector": "entropy"}, "training": {"halt_gradient": "head"}},
                {"dqn": {"expansion_selector": "static"}},
            )
        ),
    ],
    ids=["rnn-adaptive", "checksum-budget", "memory-concepts", "attention", "entropy", "static"],
)
def test_the_step_is_the_model_in_every_form_it_has(sections: dict[str, Any], capsule_file: Path) -> None:
    """Random weights act at random, so every branch is met; any number of rows."""
    arch = {"enable_capsule_expansion": True, "max_steps": 5, **sections.pop("arch", {})}
    dqn = {"enabled": True, **sections.pop("dqn", {})}
    config = tiny.make_config(arch=arch, dqn=dqn, **sections)
    with open_capsules(capsule_file) as file:
        fields = file.read("validation", slice(0, 40), ["sketches", "children", "checksums"])
    for seed in range(50):  # the first whose rows differ in what they need
        model = tiny.make_model(config, seed=seed).eval()
        trained = Trained(model, config, np.ones(tiny.K, np.float32), None, False, Path("nowhere"))
        expected = Predictor(trained).predict(**fields)
        if len({len(a.opened) for a in expected}) > 1 and len({a.steps for a in expected}) > 1:
            break
    step = ReasoningStep(trained)
    program = traced(step).module()

    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(step.output_names, program(*(inputs[name] for name in step.input_names)), strict=True))

    answers = [{"prediction": list(a.prediction), "steps": a.steps, "opened": list(a.opened)} for a in expected]
    found = compare_steps("program", trained, fields, run, answers)
    assert found.largest_difference < 1e-4
    assert found.differing_answers == 0
    assert len(found.by_step) > 1


def test_a_form_that_is_not_the_model_leaves_nothing(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if an exporter had lost a term."""
    original = ReasoningStep.step

    def other(self: ReasoningStep, given: dict[str, Any]) -> dict[str, Any]:
        found = original(self, given)
        return found | {"logits": found["logits"] + 0.01} if torch.compiler.is_exporting() else found

    monkeypatch.setattr(ReasoningStep, "step", other)
    with pytest.raises(CheckFailed, match=r"torch-export does not match the model: outputs differ by up to 0\.01"):
        export_run(trained_run, tmp_path / "out", ["torch-export"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--format", "gguf"], 2, "choose from safetensors, torch-export, onnx, all"),
        (["--weights", "int4"], 2, "choose from float32, bfloat16, int8"),
        (["--out", "."], 2, "exists already"),
    ],
)
def test_mistakes_are_named(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = tiny.invoke("export", trained_run, *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def _changed(record: dict[str, Any], change: str) -> Any:
    return {
        "newer": {**record, "schema_version": 99},
        "foreign": {**record, "format": "llama"},
        "huge": {**record, "shape": {**record["shape"], "num_classes": 2**31 - 1}},
        "negative": {**record, "shape": {**record["shape"], "dim": -1}},
        "prices": {**record, "prices": [1.0]},
        "free": {**record, "prices": [0.0] * 4},
        "names": {**record, "class_names": ["a"]},
        "config": {**record, "config": {"arch": {"hidden_size": "wide"}}},
        "wider": {
            **record,
            "config": {**record["config"], "arch": {**record["config"]["arch"], "hidden_size": 1 << 20}},
        },
        "list": [record],
        "missing": {key: value for key, value in record.items() if key != "cmi"},
    }[change]


@pytest.mark.parametrize(
    "change",
    ["newer", "foreign", "huge", "negative", "prices", "free", "names", "config", "wider", "list", "missing"],
)
def test_a_forged_config_is_refused(exported: Path, tmp_path: Path, change: str) -> None:
    folder = shutil.copytree(exported, tmp_path / "forged")
    record = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(_changed(record, change)))
    with pytest.raises(CheckpointError) as caught:
        Predictor.load(folder, device="cpu")
    assert "forged" in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "gone", "flipped", "renamed", "unscaled"])
def test_damaged_weights_are_refused(exported: Path, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(exported, tmp_path / "damaged")
    path = folder / WEIGHTS
    tensors = load_file(path)
    name = next(iter(tensors))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "gone":
        path.unlink()
    elif damage == "flipped":
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
    elif damage == "renamed":
        save_file({**{k: v for k, v in tensors.items() if k != name}, "other": tensors[name]}, path)
    else:
        save_file(tensors | {name: tensors[name].to(torch.int8)}, path)
    if damage in ("renamed", "unscaled"):  # by somebody who vouches for it
        record = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(record | {"weights_sha256": sha256_of(path)}))
    with pytest.raises(CheckpointError, match="damaged"):
        Predictor.load(folder, device="cpu")
