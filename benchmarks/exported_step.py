"""One reasoning step with its decision: ONNX Runtime and the torch.export program against eager PyTorch.

    OMP_NUM_THREADS=1 python -m benchmarks.exported_step --out benchmarks/results/exported_step.json [--repetitions 60]

Models with random weights at three widths, which act by Q-values and open by `cmi`, all with the same inputs. The forms
take turns in one process with one thread; ratios are eager time over the time of the form, that is, its speed-up, with
95 % intervals. `eager` is `ReasoningStep` (the content of the graph), `model` the model's forward pass alone, without a
decision.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmarks.record import publish
from benchmarks.timing import alternate, ratio
from trm_core.config.schema import Config
from trm_core.export.graph import ONNX, example_inputs, traced, write_onnx
from trm_core.export.step import ReasoningStep
from trm_core.inference.trained import Trained
from trm_core.model.capsule_state import CapsuleState
from trm_core.model.data_shape import DataShape
from trm_core.model.trm import TinyRecursiveModel

SIZES = {
    "width 64, k 16, H 1, L 1": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "H_cycles": 1, "L_cycles": 1},
    "width 128, k 16, H 2, L 3": {"hidden_size": 128, "num_layers": 2, "num_heads": 4, "H_cycles": 2, "L_cycles": 3},
    "width 256, k 16, H 3, L 4": {"hidden_size": 256, "num_layers": 2, "num_heads": 8, "H_cycles": 3, "L_cycles": 4},
}


def random_model(arch: dict[str, Any]) -> Trained:
    config = Config.model_validate(
        {
            "arch": {**arch, "enable_capsule_expansion": True},
            "dqn": {"enabled": True, "expansion_selector": "cmi"},
        }
    )
    shape = DataShape(
        num_capsules=16, dim=32, num_children=4, checksum_dim=0, num_classes=10, label_rank=1, total_price=16.0
    )
    torch.manual_seed(0)
    model = TinyRecursiveModel(config, shape, with_cmi=True).eval().requires_grad_(False)
    return Trained(model, config, np.ones(16, np.float32), None, False, Path("random"))


def compare(arch: dict[str, Any], rows: int, repetitions: int) -> dict[str, Any]:
    trained = random_model(arch)
    step = ReasoningStep(trained)
    inputs = example_inputs(step, rows)
    tensors = tuple(inputs[name].contiguous() for name in step.input_names)
    program = traced(step)
    module = program.module()
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(program, step, Path(folder) / ONNX)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(Path(folder) / ONNX), options)
    arrays = {name: tensor.numpy() for name, tensor in zip(step.input_names, tensors, strict=True)}
    capsules = CapsuleState(inputs["sketches"], inputs["children"], None, None, inputs["expanded"], step.prices)
    works = {
        "eager": partial(step, *tensors),
        "model": partial(trained.model, inputs["z_H"], inputs["z_L"], capsules, inputs["steps"], inputs["price"]),
        "onnx": partial(session.run, None, arrays),
        "torch-export": partial(module, *tensors),
    }
    with torch.no_grad():
        seconds = alternate(works, repetitions)
    found: dict[str, Any] = {"eager ms": round(1e3 * float(np.median(seconds["eager"])), 3)}
    for name in ("onnx", "torch-export", "model"):
        found[f"eager / {name}"] = ratio(seconds["eager"], seconds[name])
    found["model / onnx"] = ratio(seconds["model"], seconds["onnx"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repetitions", type=int, default=60)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 64])
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = {
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "sizes": {
            f"{name}, {rows} rows": compare(arch, rows, options.repetitions)
            for name, arch in SIZES.items()
            for rows in options.rows
        },
    }
    publish(record, options.out)


if __name__ == "__main__":
    main()
