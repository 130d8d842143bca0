"""The reasoning step as a graph that needs none of our code: a `torch.export` program, and the ONNX made from it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from trm_core.errors import UsageError
from trm_core.export.step import ReasoningStep, Tensors

PROGRAM = "step.pt2"
ONNX = "step.onnx"
STATE = ("z_H", "z_L", "q_memory")
_ROWS = 3  # rows of the example: a batch of 1 would be taken for a constant


def traced(step: ReasoningStep) -> ExportedProgram:
    """The program, for any number of rows."""
    example = example_inputs(step, _ROWS)
    batch = Dim("batch", min=1)
    with torch.no_grad(), _quiet():
        inputs = tuple(example[name] for name in step.input_names)
        return torch.export.export(step, inputs, dynamic_shapes=(tuple({0: batch} for _ in inputs),))


def write_program(program: ExportedProgram, path: Path) -> None:
    torch.export.save(program, path)


def write_onnx(program: ExportedProgram, step: ReasoningStep, path: Path) -> None:
    """Write the program as ONNX. Raises UsageError if the packages for that are missing."""
    require_onnx()
    with torch.no_grad(), _quiet():
        made: Any = torch.onnx.export(
            program,
            dynamo=True,
            input_names=step.input_names,
            # The state is both input and output, and a graph with two tensors of one name is not valid.
            output_names=[f"next_{name}" if name in STATE else name for name in step.output_names],
            external_data=False,
            verbose=False,
        )
    made.save(path)


def require_onnx() -> None:
    """Raise UsageError if onnx, onnxscript or onnxruntime cannot be imported."""
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise UsageError(f"ONNX needs a package: {error}", hint="pip install 'trm[onnx]'") from error
    del onnx, onnxruntime, onnxscript


def example_inputs(step: ReasoningStep, rows: int) -> Tensors:
    """Inputs of the right shapes, at the first step."""
    shape, device = step.model.data, step.prices.device
    k = shape.num_capsules
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(rows, k, *sizes, generator=generator).to(device)

    def below(limit: int, *sizes: int) -> Tensor:
        return torch.randint(max(limit, 1), (rows, *sizes), generator=generator).to(device)

    found = {
        "steps": torch.ones(rows, dtype=torch.int64, device=device),
        "price": torch.full((rows,), step.model.price_level, device=device),
        "sketches": normal(shape.dim),
        "tokens": below(shape.vocab_size, k),
        "puzzles": below(shape.num_puzzles),
        "children": normal(max(shape.num_children, 1), shape.dim),
        "expanded": torch.zeros(rows, k, dtype=torch.bool, device=device),
        "mask": torch.ones(rows, k, dtype=torch.bool, device=device),
        "parents": torch.full((rows, k), -1, device=device),
        "checksums": normal(max(shape.checksum_dim, 1)),
    }
    return {name: value for name, value in found.items() if name in step.input_names} | step.first_state(rows)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporters say about packages that we do not use and about each other's deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(before)
