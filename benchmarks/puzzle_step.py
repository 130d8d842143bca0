"""A training step on Sudoku beside one of the public TRM code: time and memory.

    git clone https://github.com/SamsungSAILMontreal/TinyRecursiveModels /tmp/public
    python -m benchmarks.puzzle_step --public /tmp/public --out benchmarks/results/puzzle_step.json

The network of the paper (configs/sudoku_att.yaml, or --mixer mlp) on random boards of 81 cells, the same batch size and
number of threads, in one process, a step of each in turn. Theirs is what their training loop does for a batch:
forward, backward, AdamAtan2 (ours, as theirs needs CUDA) and sign-SGD, averages; ours is the whole step of the
trainer, with its metrics; `products` are the matrix products of such a step alone, below which nothing can go.
Ratios of neighbouring steps with 95 % intervals, --pairs of them; memory is the growth of
the process's resident peak, each alone in a process of its own.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.timing import alternate, ratio, take_step
from trm_core.config import load_config
from trm_core.data.puzzles.reader import open_puzzles
from trm_core.optim.adam_atan2 import adam_atan2
from trm_core.training.features import resolve_features, resolved
from trm_core.training.trainer import Trainer

CELLS, VOCABULARY, ROWS = 81, 11, 256
CONFIGS = Path(__file__).parent.parent / "configs"


def random_boards(folder: Path) -> Path:
    """A puzzle folder of random cells: only the cost of a step matters here."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        arrays = {
            "inputs": rng.integers(1, VOCABULARY, (ROWS, CELLS)).astype(np.uint8),
            "labels": rng.integers(2, VOCABULARY, (ROWS, CELLS)).astype(np.uint8),
            "puzzle_identifiers": np.zeros(ROWS, np.int32),
            "puzzle_indices": np.arange(ROWS + 1, dtype=np.int32),
            "group_indices": np.arange(ROWS + 1, dtype=np.int32),
        }
        for name, array in arrays.items():
            np.save(folder / split / f"all__{name}.npy", array)
        metadata = {"pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0, "num_puzzle_identifiers": 1}
        metadata |= {"vocab_size": VOCABULARY, "seq_len": CELLS, "total_groups": ROWS, "total_puzzles": ROWS}
        (folder / split / "dataset.json").write_text(
            json.dumps({**metadata, "mean_puzzle_examples": 1.0, "sets": ["all"]})
        )
    return folder


def our_step(mixer: str, batch: int, precision: str, folder: Path) -> Callable[[], None]:
    name = "sudoku_att.yaml" if mixer == "attention" else "sudoku_mlp.yaml"
    changes = [f"data.path={folder}", f"training.global_batch_size={batch}", f"training.precision={precision}"]
    config = load_config(CONFIGS / name, [*changes, "training.device=cpu", "training.lr_warmup_steps=1"]).config
    data = open_puzzles(folder)
    features = resolve_features(config, data)
    trainer = Trainer(resolved(config, features), features, [(data, 1.0)], torch.device("cpu"))
    return lambda: take_step(trainer)


def their_step(mixer: str, batch: int, precision: str, public: Path) -> Callable[[], None]:
    sys.path.insert(0, str(public))
    from models.losses import ACTLossHead  # type: ignore[import-not-found]
    from models.recursive_reasoning import trm  # type: ignore[import-not-found]
    from models.sparse_embedding import CastedSparseEmbeddingSignSGD_Distributed  # type: ignore[import-not-found]

    torch.manual_seed(0)
    settings: dict[str, Any] = {"batch_size": batch, "seq_len": CELLS, "vocab_size": VOCABULARY, "hidden_size": 512}
    settings |= {"num_puzzle_identifiers": 1, "puzzle_emb_ndim": 512, "puzzle_emb_len": 16, "expansion": 4}
    settings |= {"H_cycles": 3, "L_cycles": 6, "H_layers": 0, "L_layers": 2, "num_heads": 8, "halt_max_steps": 16}
    settings |= {"halt_exploration_prob": 0.1, "forward_dtype": precision, "mlp_t": mixer == "mlp"}
    settings["pos_encodings"] = "rope" if mixer == "attention" else "none"
    model = ACTLossHead(trm.TinyRecursiveReasoningModel_ACTV1(settings), "stablemax_cross_entropy").train()
    weights = list(model.parameters())
    dense, _ = adam_atan2(weights, lr=1e-4, betas=(0.9, 0.95), weight_decay=1.0)
    buffers = model.model.puzzle_emb.buffers()
    sparse = CastedSparseEmbeddingSignSGD_Distributed(buffers, lr=1e-4, weight_decay=1.0, world_size=1)
    average = copy.deepcopy([p.detach() for p in weights])
    rng = np.random.default_rng(1)
    boards = {
        "inputs": torch.from_numpy(rng.integers(1, VOCABULARY, (batch, CELLS)).astype(np.int32)),
        "labels": torch.from_numpy(rng.integers(2, VOCABULARY, (batch, CELLS)).astype(np.int32)),
        "puzzle_identifiers": torch.zeros(batch, dtype=torch.int32),
    }
    carry = model.initial_carry(boards)

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


def matrix_products(mixer: str, batch: int) -> Callable[[], None]:
    """The matrix products of such a step and nothing else: forward, and for the gradient of inputs and of weights. No
    step at the same arithmetic can take less.
    """
    positions, D, hidden = CELLS + 16, 512, 1536
    rows = batch * positions
    shapes = [(rows, D, 2 * hidden), (rows, hidden, D)]  # rows, inputs, outputs
    if mixer == "attention":
        shapes += [(rows, D, 3 * D), (rows, D, D)]
    else:
        over = 512
        shapes += [(batch * D, positions, 2 * over), (batch * D, over, positions)]
    made = [(torch.randn(n, i), torch.randn(o, i), torch.randn(n, o)) for n, i, o in shapes]
    passes, learning = 3 * (6 + 1) * 2, (6 + 1) * 2  # networks of two layers; those of the last cycle learn

    def step() -> None:
        for number in range(passes):
            for x, weight, gradient in made:
                torch.mm(x, weight.T)
                if number < learning:
                    torch.mm(gradient, weight)
                    torch.mm(gradient.T, x)

    return step


def peak_bytes() -> int:
    """Most memory that this process has had at once (Linux). getrusage would count the parent's before its exec."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]


def peak_growth(which: str, arguments: argparse.Namespace) -> float:
    """Megabytes that three steps add to the resident peak, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.puzzle_step", "--public", str(arguments.public), "--alone", which]
    command += ["--mixer", arguments.mixer, "--batch", str(arguments.batch), "--threads", str(arguments.threads)]
    command += ["--precision", arguments.precision]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def make(which: str, arguments: argparse.Namespace, folder: Path) -> Callable[[], None]:
    if which == "ours":
        return our_step(arguments.mixer, arguments.batch, arguments.precision, random_boards(folder))
    return their_step(arguments.mixer, arguments.batch, arguments.precision, arguments.public)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", type=Path, required=True, help="a clone of the public code")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--mixer", choices=["attention", "mlp"], default="attention")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of both")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--alone", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.alone:
            step = make(arguments.alone, arguments, Path(folder) / "data")
            before = peak_bytes()
            for _ in range(3):
                step()
            print((peak_bytes() - before) / 1e6)
            return
        work = {which: make(which, arguments, Path(folder) / which) for which in ("ours", "theirs")}
        if arguments.precision == "float32":
            work["products"] = matrix_products(arguments.mixer, arguments.batch)
        seconds = alternate(work, arguments.pairs)
    record = {
        "setting": {key: getattr(arguments, key) for key in ("mixer", "precision", "batch", "threads", "pairs")},
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "seconds": {name: float(np.median(values)) for name, values in seconds.items()},
        "ours / theirs": ratio(seconds["ours"], seconds["theirs"]),
        **({"products / theirs": ratio(seconds["products"], seconds["theirs"])} if "products" in work else {}),
        "peak growth, MB": {which: peak_growth(which, arguments) for which in ("ours", "theirs")},
    }
    print(json.dumps(record, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
