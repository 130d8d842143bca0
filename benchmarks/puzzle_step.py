"""A training step on Sudoku against one of the public TRM code: time and memory.

    git clone https://github.com/SamsungSAILMontreal/TinyRecursiveModels /tmp/public
    python -m benchmarks.puzzle_step --public /tmp/public --out benchmarks/results/puzzle_step.json
    python -m benchmarks.puzzle_step --public /tmp/public --compile --out benchmarks/results/puzzle_step_compiled.json
    python -m benchmarks.puzzle_step --public /tmp/public --width 128 --cells 16 --prefix 1 --batch 96 --out ...

The network of the paper (configs/sudoku_att.yaml, or --mixer mlp) on random boards, with the same batch size and number
of threads, in one process, taking steps in turn. Their step is what their training loop does for a batch: forward,
backward, AdamAtan2 (ours, as theirs needs CUDA), sign-SGD and averages; ours is the trainer's whole step, including its
metrics. `floor` is a lower bound for any step with the same arithmetic, compiled or not: its matrix products and
attention, with the kernels that both call; `products` is without attention. --compile compiles theirs as their script
does (the whole model) and ours as training.compile does. Ratios of neighbouring steps with 95 % intervals, --pairs of
them. Memory is the growth of peak resident memory, each side in a separate process.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.record import publish
from benchmarks.timing import alternate, ratio, take_step
from trm_core.config import load_config
from trm_core.data.puzzles.reader import open_puzzles
from trm_core.optim.adam_atan2 import adam_atan2
from trm_core.training.features import resolve_features, resolved
from trm_core.training.trainer import Trainer

VOCABULARY, ROWS, HIDDEN_MULTIPLE = 11, 256, 256
LEARNING_PASSES = (6 + 1) * 2  # in the last of three H-cycles, through two layers each
LAYER_PASSES = 3 * LEARNING_PASSES
CONFIGS = Path(__file__).parent.parent / "configs"


@dataclass(frozen=True)
class Setting:
    """What both sides compute. A head has 64 channels."""

    mixer: str = "attention"
    precision: str = "float32"
    batch: int = 8
    width: int = 512
    cells: int = 81
    prefix: int = 16
    threads: int = 1
    pairs: int = 15
    compile: bool = False

    @property
    def heads(self) -> int:
        return max(1, self.width // 64)


def random_boards(folder: Path, cells: int, identifiers: int = 1) -> Path:
    """A puzzle folder of random cells: only the cost or the arithmetic of a step matters here."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        arrays = {
            "inputs": rng.integers(1, VOCABULARY, (ROWS, cells)).astype(np.uint8),
            "labels": rng.integers(2, VOCABULARY, (ROWS, cells)).astype(np.uint8),
            "puzzle_identifiers": (np.arange(ROWS) % identifiers).astype(np.int32),
            "puzzle_indices": np.arange(ROWS + 1, dtype=np.int32),
            "group_indices": np.arange(ROWS + 1, dtype=np.int32),
        }
        for name, array in arrays.items():
            np.save(folder / split / f"all__{name}.npy", array)
        metadata = {"pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0, "num_puzzle_identifiers": identifiers}
        metadata |= {"vocab_size": VOCABULARY, "seq_len": cells, "total_groups": ROWS, "total_puzzles": ROWS}
        (folder / split / "dataset.json").write_text(
            json.dumps({**metadata, "mean_puzzle_examples": 1.0, "sets": ["all"]})
        )
    return folder


def our_step(setting: Setting, folder: Path) -> Callable[[], None]:
    name = "sudoku_att.yaml" if setting.mixer == "attention" else "sudoku_mlp.yaml"
    changes = [f"data.path={folder}", "training.device=cpu", "training.lr_warmup_steps=1"]
    changes += [f"training.global_batch_size={setting.batch}", f"training.precision={setting.precision}"]
    changes += [f"training.compile={str(setting.compile).lower()}", f"arch.num_heads={setting.heads}"]
    changes += [f"arch.hidden_size={setting.width}", f"arch.puzzle_emb_ndim={setting.width}"]
    changes += [f"arch.puzzle_emb_len={setting.prefix}"]
    config = load_config(CONFIGS / name, changes).config
    data = open_puzzles(folder)
    features = resolve_features(config, data)
    trainer = Trainer(resolved(config, features), features, [(data, 1.0)], torch.device("cpu"))
    return lambda: take_step(trainer)


def their_step(setting: Setting, public: Path) -> Callable[[], None]:
    sys.path.insert(0, str(public))
    from models.losses import ACTLossHead  # type: ignore[import-not-found]
    from models.recursive_reasoning import trm  # type: ignore[import-not-found]
    from models.sparse_embedding import CastedSparseEmbeddingSignSGD_Distributed  # type: ignore[import-not-found]

    torch.manual_seed(0)
    batch, width = setting.batch, setting.width
    settings: dict[str, Any] = {"batch_size": batch, "seq_len": setting.cells, "vocab_size": VOCABULARY}
    settings |= {"num_puzzle_identifiers": 1, "puzzle_emb_ndim": width, "puzzle_emb_len": setting.prefix}
    settings |= {"hidden_size": width, "num_heads": setting.heads, "expansion": 4, "halt_max_steps": 16}
    settings |= {"H_cycles": 3, "L_cycles": 6, "H_layers": 0, "L_layers": 2, "halt_exploration_prob": 0.1}
    settings |= {"forward_dtype": setting.precision, "mlp_t": setting.mixer == "mlp"}
    settings["pos_encodings"] = "rope" if setting.mixer == "attention" else "none"
    model: Any = ACTLossHead(trm.TinyRecursiveReasoningModel_ACTV1(settings), "stablemax_cross_entropy").train()
    weights = list(model.parameters())
    dense, _ = adam_atan2(weights, lr=1e-4, betas=(0.9, 0.95), weight_decay=1.0)
    buffers = model.model.puzzle_emb.buffers()
    sparse = CastedSparseEmbeddingSignSGD_Distributed(buffers, lr=1e-4, weight_decay=1.0, world_size=1)
    average = copy.deepcopy([p.detach() for p in weights])
    rng = np.random.default_rng(1)
    boards = {
        "inputs": torch.from_numpy(rng.integers(1, VOCABULARY, (batch, setting.cells)).astype(np.int32)),
        "labels": torch.from_numpy(rng.integers(2, VOCABULARY, (batch, setting.cells)).astype(np.int32)),
        "puzzle_identifiers": torch.zeros(batch, dtype=torch.int32),
    }
    carry = model.initial_carry(boards)
    if setting.compile:
        model = torch.compile(model)

    def step() -> None:
        nonlocal carry
        carry, loss, metrics, _, _ = model(carry=carry, batch=boards, return_keys=[])
        (loss / batch).backward()
        for optimizer in (sparse, dense):
            optimizer.step()
            optimizer.zero_grad()
        torch.stack([metrics[name] for name in sorted(metrics)]).numpy()
        with torch.no_grad():
            for mean, p in zip(average, weights, strict=True):
                mean.mul_(0.999).add_(p, alpha=0.001)

    return step


def matrix_products(setting: Setting) -> Callable[[], None]:
    """Only the matrix products of such a step: forward, and for the gradients of inputs and weights. No step with the
    same arithmetic can take less.
    """
    positions, D = setting.cells + setting.prefix, setting.width
    hidden, over = hidden_size(D), hidden_size(positions)
    rows = setting.batch * positions
    shapes = [(rows, D, 2 * hidden), (rows, hidden, D)]  # rows, inputs, outputs
    if setting.mixer == "attention":
        shapes += [(rows, D, 3 * D), (rows, D, D)]
    else:
        shapes += [(setting.batch * D, positions, 2 * over), (setting.batch * D, over, positions)]
    made = [(torch.randn(n, i), torch.randn(o, i), torch.randn(n, o)) for n, i, o in shapes]

    def step() -> None:
        for number in range(LAYER_PASSES):
            for x, weight, gradient in made:
                torch.mm(x, weight.T)
                if number < LEARNING_PASSES:
                    torch.mm(gradient, weight)
                    torch.mm(gradient.T, x)

    return step


def attention(setting: Setting) -> Callable[[], None]:
    """Only the attention of such a step: forward, and for the gradients of queries, keys and values."""
    shape = (setting.batch, setting.heads, setting.cells + setting.prefix, setting.width // setting.heads)
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
    gradient = torch.randn(shape)

    def step() -> None:
        for number in range(LAYER_PASSES):
            learns = number < LEARNING_PASSES
            with torch.set_grad_enabled(learns):
                mixed = F.scaled_dot_product_attention(q, k, v)
            if learns:
                torch.autograd.grad(mixed, (q, k, v), gradient)

    return step


def hidden_size(width: int) -> int:
    """Hidden size of a SwiGLU with expansion 4."""
    return -(-round(4 * width * 2 / 3) // HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE


def peak_bytes() -> int:
    """Peak resident memory of this process (Linux). getrusage would include that of the parent before exec."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]


def peak_growth(which: str, setting: Setting, public: Path) -> float:
    """Megabytes that three steps add to peak resident memory, in a separate process."""
    command = [sys.executable, "-m", "benchmarks.puzzle_step", "--public", str(public), "--alone", which]
    for name, value in asdict(setting).items():
        if name == "compile":
            command += ["--compile"] * value
        else:
            command += [f"--{name}", str(value)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def make(which: str, setting: Setting, public: Path, folder: Path) -> Callable[[], None]:
    if which == "ours":
        return our_step(setting, random_boards(folder, setting.cells))
    return their_step(setting, public)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", type=Path, required=True, help="a clone of the public code")
    parser.add_argument("--out", type=Path)
    defaults = Setting()
    parser.add_argument("--mixer", choices=["attention", "mlp"], default=defaults.mixer)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default=defaults.precision, help="of both")
    for name in ("batch", "width", "cells", "prefix", "threads", "pairs"):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name))
    parser.add_argument("--compile", action="store_true", help="both")
    parser.add_argument("--alone", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    setting = Setting(**{name: getattr(arguments, name) for name in asdict(defaults)})
    torch.set_num_threads(setting.threads)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.alone:
            step = make(arguments.alone, setting, arguments.public, Path(folder) / "data")
            before = peak_bytes()
            for _ in range(3):
                step()
            print((peak_bytes() - before) / 1e6)
            return
        work = {which: make(which, setting, arguments.public, Path(folder) / which) for which in ("ours", "theirs")}
        if setting.precision == "float32":
            work["products"] = matrix_products(setting)
        if setting.precision == "float32" and setting.mixer == "attention":
            work["attention"] = attention(setting)
        seconds = alternate(work, setting.pairs)
    if "products" in seconds:
        seconds["floor"] = seconds["products"] + seconds.pop("attention", 0.0)  # the MLP mixer has none
    record = {
        "setting": asdict(setting),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "seconds": {name: float(np.median(values)) for name, values in seconds.items()},
        "ours / theirs": ratio(seconds["ours"], seconds["theirs"]),
        **{
            f"{least} / theirs": ratio(seconds[least], seconds["theirs"])
            for least in ("products", "floor")
            if least in seconds
        },
        "peak growth, MB": {which: peak_growth(which, setting, arguments.public) for which in ("ours", "theirs")},
    }
    publish(record, arguments.out)


if __name__ == "__main__":
    main()
