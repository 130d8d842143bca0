"""A run -> a folder that others can use: complete, with every form compared with the model, or not there at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from trm_core.data.dataset import Dataset, open_dataset
from trm_core.data.fields import ENCODERS
from trm_core.data.puzzles.identifiers import numbered_as_trained
from trm_core.data.puzzles.reader import PuzzleData
from trm_core.data.recorded_encoder import RecordedEncoder
from trm_core.data.store import open_capsules
from trm_core.errors import ResourceError, UsageError
from trm_core.evaluation.report import EvaluationData, Evaluator, as_records, default_policies
from trm_core.export.card import model_card
from trm_core.export.graph import ONNX, PROGRAM, STATE, require_onnx, traced, write_onnx, write_program
from trm_core.export.step import NOT_IN_A_GRAPH, ReasoningStep
from trm_core.export.verify import Fields, Verification, as_record, compare_answers, compare_steps, run_folder
from trm_core.inference.folder import CONFIG, STORED, WEIGHTS, describe, read_folder, write_weights
from trm_core.inference.load import load_trained
from trm_core.inference.predictor import Predictor
from trm_core.inference.trained import Trained

FORMATS = ("safetensors", "torch-export", "onnx")
RUNNERS = {"onnx": "run_onnx.py", "torch-export": "run_torch_export.py"}
_SAMPLES = 64  # samples that are compared
_MOST_MEASURED = 2000  # puzzles measured for the table of the model card: a split may have hundreds of thousands


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    forms: list[str]
    verified: list[Verification]
    scores: list[dict[str, Any]]
    accuracy_before: float | None  # of the first policy with the weights as trained; None: stored unchanged


def export_run(
    run: Path,
    out: Path,
    formats: Sequence[str],
    stored: str = "float32",
    license_name: str = "other",
    checkpoint: str = "latest",
    log: Callable[[str], None] = lambda message: None,
    overrides: Sequence[str] = (),
) -> Exported:
    """Write `out`, which must not exist. stored: how the weights are kept; overrides: of the run's config. Raises
    UsageError, ConfigError, CheckpointError, DataError, or CheckFailed if a form differs from the model; then nothing
    is left behind.
    """
    forms = list(FORMATS) if "all" in formats else [form for form in FORMATS if form in formats]
    unknown = [form for form in formats if form not in (*FORMATS, "all")]
    if unknown or not forms:
        raise UsageError(f"no format '{unknown[0] if unknown else ''}'", hint=f"choose from {', '.join(FORMATS)}, all")
    if stored not in STORED:
        raise UsageError(f"weights cannot be stored as '{stored}'", hint=f"choose from {', '.join(STORED)}")
    if out.exists():
        raise UsageError(f"{out} exists already", hint="name another --out, or remove it first")
    if "onnx" in forms:
        require_onnx()
    original = in_float32(load_trained(run, "cpu", checkpoint, overrides))
    for note in original.notes:
        log(note)
    half = out.with_name(f".{out.name}.part")
    shutil.rmtree(half, ignore_errors=True)
    try:
        half.mkdir(parents=True)
        exported = _write(original, half, forms, stored, license_name, log)
        half.rename(out)
    except OSError as error:
        raise ResourceError(f"cannot write {out}: {error.strerror}", hint="free some disk space") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return replace(exported, folder=out)


def in_float32(trained: Trained) -> Trained:
    """The model as others get it: float32 weights whatever `training.precision` says, and graphs in float32."""
    training = trained.config.training.model_copy(update={"precision": "float32"})
    trained.model.recursion.precision = "float32"
    return replace(trained, config=trained.config.model_copy(update={"training": training}))


def _write(
    original: Trained, folder: Path, forms: list[str], stored: str, license_name: str, log: Callable[[str], None]
) -> Exported:
    recorded, split = Path(original.about["data"]), str(original.about["split"])
    about = {**original.about, "data": recorded.name}
    original = replace(original, about=about)
    write_weights(folder / WEIGHTS, original.model, stored)
    record = describe(original, stored, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    # From here on only what is on the disk counts: these are the weights that others will have.
    trained = read_folder(folder, original.device)
    with closing(open_dataset(recorded)) as file:
        if isinstance(file, PuzzleData) and trained.config.arch.puzzle_emb_ndim:
            file = numbered_as_trained(file, trained.model.data.num_puzzles, trained.identifiers)
        limit = _MOST_MEASURED if isinstance(file, PuzzleData) and file.rows[split] > _MOST_MEASURED else None
        data = EvaluationData(file, split, limit)
        fields = real_samples(file, split)
        measured = f"{limit:,} rows, spread over the {split} split" if limit else f"{split} split"
        log(f"measuring on the {measured} of {recorded.name}")
        names = [name for name in default_policies(trained.config) if name != "random"]
        scores = as_records(Evaluator(trained.model, trained.config, data).table(names))
        before = None
        if stored != "float32":
            before = as_records(Evaluator(original.model, original.config, data).table(names[:1]))[0]["accuracy"]
    if trained.puzzles is None:
        keep_encoder(recorded, folder, log)
    verified = [verify_weights(trained, original if stored == "float32" else trained, fields)]
    if any(form in RUNNERS for form in forms):
        step = ReasoningStep(trained)
        log("tracing one reasoning step")
        program = traced(step)
        record["step"] = step_record(step)
        (folder / CONFIG).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        for form in (form for form in forms if form in RUNNERS):
            log(f"writing {form}")
            if form == "onnx":
                write_onnx(program, step, folder / ONNX)
            else:
                write_program(program, folder / PROGRAM)
            shutil.copyfile(str(resources.files("trm_core.export") / "runners" / RUNNERS[form]), folder / RUNNERS[form])
            verified.append(compare_steps(form, trained, fields, *run_folder(folder, RUNNERS[form], fields)))
    note = None
    if before is not None:
        change = 100 * (scores[0]["accuracy"] - before)
        note = f"Stored as {stored}, the accuracy of the {scores[0]['policy']} policy changes by {change:+.2f} points."
        log(note)
    (folder / "verification.json").write_text(json.dumps(as_record(verified), indent=1) + "\n", encoding="utf-8")
    card = model_card(trained, forms, scores, measured, verified, license_name, stored, note)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return Exported(folder, forms, verified, scores, before)


def keep_encoder(capsules: Path, folder: Path, log: Callable[[str], None]) -> None:
    """Keep the encoder that made capsules of the training data; a file of an earlier version has none."""
    with open_capsules(capsules) as file:
        there = ENCODERS in file.manifest
    if there:
        RecordedEncoder.of_file(capsules).save(folder)
    else:
        log(f"{capsules.name} does not hold its encoder: the folder answers arrays, not raw samples")


def verify_weights(trained: Trained, original: Trained, fields: Fields) -> Verification:
    """Compare the folder, read back, with the model it was made from."""
    answers = [
        {"prediction": list(a.prediction), "steps": a.steps, "opened": list(a.opened)}
        for a in Predictor(trained).predict(**fields)
    ]
    if original.dqn.expansion_selector in NOT_IN_A_GRAPH and original.can_expand:
        return compare_answers("safetensors", original, fields, answers)
    other = ReasoningStep(trained)
    return compare_steps("safetensors", original, fields, other.step, answers)


def step_record(step: ReasoningStep) -> dict[str, Any]:
    """What a loop around the step has to know: `step` in config.json."""
    shape, model = step.model.data, step.model
    first: dict[str, Any] = {
        "z_H": [model.first_z_H.tolist(), [model.positions, 1]],
        "z_L": [model.first_z_L.tolist(), [model.positions, 1]],
    }
    if "q_memory" in step.input_names:
        first["q_memory"] = [[0.0] * model.q_head.recurrent_width, [1]]
    return {
        "inputs": step.input_names,
        "outputs": [f"next_{name}" if name in STATE else name for name in step.output_names],
        "first": first,
        "price_level": model.price_level,
        "max_steps": step.max_steps,
        "children": [shape.num_capsules, shape.num_children, shape.dim],
        "actions": ["continue", "halt", "expand"],
        **({} if step.puzzles is None else {"blank_puzzle": step.puzzles.blank}),
    }


def real_samples(file: Dataset, split: str) -> Fields:
    """Some rows spread evenly over a split, as the predictor takes them."""
    names = [name for name in ("sketches", "children", "mask", "parents", "checksums") if file.has(name)]
    rows = file.rows[split]
    index = np.unique(np.linspace(0, rows - 1, min(rows, _SAMPLES)).astype(np.int64))
    if isinstance(file, PuzzleData):
        block = file.read(split, index)
        return {"tokens": block["sketches"], "puzzles": block["puzzles"]}
    read = file.read(split, index, names)
    return {name: values.astype(np.float32) if values.dtype.kind == "f" else values for name, values in read.items()}
