"""What DQN, EXPAND and hierarchical attention add to the time of a training step.

    python -m benchmarks.step_cost --out benchmarks/results/step_cost.json [--hidden 128 --layers 4 --batch 96]

The multimodal config of the pipeline (k = 12, m = 4, D = 512, H 3, L 2, every step learning) at a reduced width, on
random capsules. Four trainers in one process take steps in turn:

    plain     halting by the halt logit, sketches only
    hierarchy the same, with attention biased by parenthood
    dqn       plain, with replay and Q-learning over CONTINUE and HALT
    expand    the same, with EXPAND over capsules with children

Ratios of neighbouring steps with 95 % intervals; one thread. Before timing starts, the replay buffers are full enough
to learn from.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import describe_machine, publish
from benchmarks.timing import alternate, ratio, take_step
from trm_core.config.schema import Config
from trm_core.data.checksum import checksums
from trm_core.data.store import CapsuleWriter, open_capsules
from trm_core.training.features import resolve_features, resolved
from trm_core.training.trainer import Trainer

K, M, D, ROWS, CLASSES = 12, 4, 512, 600, 10
VARIANTS = {
    "plain": {"dqn": {"enabled": False}, "arch": {"enable_capsule_expansion": False, "q_head_num_actions": 2}},
    "hierarchy": {
        "dqn": {"enabled": False},
        "arch": {
            "enable_capsule_expansion": False,
            "q_head_num_actions": 2,
            "enable_hierarchical_attention": True,
        },
    },
    "dqn": {"dqn": {"enabled": True}, "arch": {"enable_capsule_expansion": False, "q_head_num_actions": 2}},
    "expand": {"dqn": {"enabled": True}, "arch": {"enable_capsule_expansion": True}},
}


def write_random(path: Path, k: int = K, m: int = M, dim: int = D, checksum_dim: int = 0, rows: int = ROWS) -> Path:
    """Random capsules with random labels: only the cost of a step matters here."""
    random = np.random.default_rng(0)
    sizes = {"num_capsules": k, "dim": dim, "num_children": m, "checksum_dim": checksum_dim, "label_rank": 1}
    parents = np.tile(np.where(np.arange(k) % 4 == 0, -1, np.arange(k) // 4 * 4), (100, 1))  # groups of four
    with CapsuleWriter(path, **sizes, with_parents=True) as writer:
        for _ in range(rows // 100):
            children = random.normal(size=(100, k, m, dim)).astype(np.float16)
            labels = np.arange(100) % CLASSES
            batch = {"sketches": children.mean(2), "children": children, "labels": labels, "parents": parents}
            if checksum_dim:
                batch["checksums"] = checksums(children.astype(np.float32), checksum_dim, 0)
            writer.append("train", batch)
        writer.close({"task": "classes", "num_classes": CLASSES, "kind": "arrays", "checksum_seed": 0})
    return path


def make_trainer(path: Path, variant: str, arguments: argparse.Namespace) -> Trainer:
    settings = VARIANTS[variant]
    config = Config.model_validate(
        {
            "arch": {
                "hidden_size": arguments.hidden,
                "num_layers": arguments.layers,
                "num_heads": 4,
                "q_head_hidden_dim": arguments.hidden,
                **settings["arch"],
            },
            "training": {"global_batch_size": arguments.batch, "lr_warmup_steps": 10, "device": "cpu"},
            "dqn": {"buffer_min_size": 256, **settings["dqn"]},
        }
    )
    file = open_capsules(path)
    features = resolve_features(config, file)
    return Trainer(resolved(config, features), features, [(file, 1.0)], torch.device("cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--repetitions", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = write_random(Path(folder) / "random.h5")
        trainers = {name: make_trainer(path, name, arguments) for name in VARIANTS}
        for name, trainer in trainers.items():
            take_step(trainer)
            while name in ("dqn", "expand") and not trainer.standing().can_replay:
                take_step(trainer)  # the buffer is still filling
        seconds = alternate(
            {name: partial(take_step, trainer) for name, trainer in trainers.items()}, arguments.repetitions
        )
    record = {
        "machine": describe_machine(threads=1),
        "hidden": arguments.hidden,
        "layers": arguments.layers,
        "batch": arguments.batch,
        "hierarchy over plain": ratio(seconds["hierarchy"], seconds["plain"]),
        "dqn over plain": ratio(seconds["dqn"], seconds["plain"]),
        "expand over plain": ratio(seconds["expand"], seconds["plain"]),
        "expand over dqn": ratio(seconds["expand"], seconds["dqn"]),
        "median milliseconds": {name: float(1e3 * np.median(values)) for name, values in seconds.items()},
    }
    publish(record, arguments.out)


if __name__ == "__main__":
    main()
