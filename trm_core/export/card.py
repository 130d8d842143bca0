"""The model card: what the model is, how good it measured, and how to use each form of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trm_core.export.graph import ONNX, PROGRAM
from trm_core.export.verify import Verification
from trm_core.inference.trained import Trained

_USES = {
    "safetensors": """```python
from trm_core.inference.predictor import Predictor

predictor = Predictor.load(".")
answers = predictor.ask([...])  # raw samples, where preprocessing.json is there
answers = predictor.predict(sketches=x, children=detail)  # or children=lambda row, capsule: ...
print(answers[0].label, answers[0].confidence, answers[0].opened)
```""",
    "puzzles": """```python
from trm_core.inference.predictor import Predictor

predictor = Predictor.load(".")
answers = predictor.predict(tokens=x)  # [n, S]; puzzles=[n] identifiers, for those of the training data
answers = predictor.ask([...])  # or puzzles as people write them; on the command line: trm predict FILE --model .
print(answers[0].prediction, answers[0].halt_probability, answers[0].steps)
```""",
    "onnx": f"""`{ONNX}` is one reasoning step with its decision, `run_onnx.py` the loop around it. It needs numpy and
onnxruntime alone: `python run_onnx.py samples.npz`.""",
    "torch-export": f"""`{PROGRAM}` is the same step as a `torch.export` program. `run_torch_export.py` needs
numpy and torch alone: `python run_torch_export.py samples.npz`.""",
}


def model_card(
    trained: Trained,
    forms: list[str],
    scores: list[dict[str, Any]],
    measured: str,
    found: list[Verification],
    license_name: str,
    stored: str,
    weights_note: str | None,
) -> str:
    """README.md of the folder, with the front matter that the Hugging Face Hub reads."""
    shape, config = trained.model.data, trained.config
    parameters = sum(p.numel() for p in trained.model.parameters())
    lines = [
        "---",
        f"license: {license_name}",
        "library_name: trm",
        "tags: [recursive-reasoning, adaptive-computation]",
        "---",
        "",
        f"# {config.name}",
        "",
        f"A tiny recursive model with {parameters:,} parameters. It sees {_seen(trained)}, reasons for up to "
        f"{trained.max_steps} steps, and after each step halts or thinks on"
        + (
            f", or opens one or more capsules ({shape.num_children} children of width {shape.dim} each)."
            if trained.can_expand
            else "."
        ),
        "",
        f"Data: {trained.about.get('kind') or 'capsules'}, {shape.num_classes} "
        f"{'symbols' if shape.tokens else 'classes'}"
        + (
            f" ({', '.join(trained.class_names[:12])}{', ...' if shape.num_classes > 12 else ''})"
            if trained.class_names
            else ""
        )
        + f". Trained for {trained.about.get('step', '?')} steps. Weights are stored as {stored}.",
        "",
        *_changed(trained),
        f"## Measured on the {measured}",
        "",
        *(_puzzle_table(scores) if shape.tokens else _capsule_table(scores)),
        "",
        *([weights_note, ""] if weights_note else []),
        "## Use",
        "",
        *(line for form in forms for line in (_use(trained, form), "")),
        "## Verified",
        "",
        "Each form against the model it was made from, on samples of that split, after every reasoning step:",
        "",
        "| form | samples | largest difference of any output | other decisions | other answers |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {v.form} | {v.samples} | {v.largest_difference:.2g} | {v.differing_decisions} | {v.differing_answers} |"
            for v in found
        ),
        "",
    ]
    return "\n".join(lines)


def _changed(trained: Trained) -> Iterator[str]:
    """The overrides of the export: whoever reads about the run elsewhere would take its settings for these."""
    changed = trained.about.get("changed")
    if changed:
        yield "Overrides of the export:"
        yield ""
        yield from (f"- {one}" for one in changed)
        yield ""


def _capsule_table(scores: list[dict[str, Any]]) -> Iterator[str]:
    yield "| policy | accuracy % | 95 % interval | opened | spent | steps |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for s in scores:
        yield (
            f"| {s['policy']} | {100 * s['accuracy']:.2f} | {100 * s['low']:.1f}-{100 * s['high']:.1f} "
            f"| {s['opened']:.2f} | {s['spent']:.2f} | {s['steps']:.2f} |"
        )


def _puzzle_table(scores: list[dict[str, Any]]) -> Iterator[str]:
    """Whole puzzles come first, because most of their cells are given or easy."""
    yield "| policy | whole puzzles right, % | 95 % interval | cells right, % | steps |"
    yield "| --- | --- | --- | --- | --- |"
    for s in scores:
        yield (
            f"| {s['policy']} | {100 * s['exact_accuracy']:.2f} "
            f"| {100 * s['exact_low']:.1f}-{100 * s['exact_high']:.1f} | {100 * s['accuracy']:.2f} | {s['steps']:.2f} |"
        )


def _seen(trained: Trained) -> str:
    if trained.puzzles is None:
        return f"{trained.model.data.num_capsules} coarse capsules of a sample"
    return f"the {trained.puzzles.height} x {trained.puzzles.width} cells of a puzzle ({trained.puzzles.kind})"


def _use(trained: Trained, form: str) -> str:
    return _USES["puzzles" if form == "safetensors" and trained.puzzles is not None else form]
