"""Train our networks and those of the public TRM and HRM code side by side: how far do they drift apart?

    git clone https://github.com/SamsungSAILMontreal/TinyRecursiveModels /tmp/public
    python -m benchmarks.public_training --public /tmp/public --out benchmarks/results/public_training.json [--steps 24]

Both begin with the same weights and see the same samples. Ours is the whole trainer with the configs of the paper at a
small width; theirs is what their training loop does for a batch: carry, loss, sign-SGD, AdamAtan2 (ours, as theirs
needs CUDA). Nothing is random: there is no exploration. A third side is theirs with first weights that were nudged by
as much as rounding would (NUDGE): nobody can be expected to stay closer to theirs than that.

After each step: `loss`, the largest difference of the step's losses (answer, halt, continue); `weights`, how far the
weights are from theirs, relative to how far theirs have moved; the same for `nudged`. The comparison ends where rows do
not halt together, as they see other samples from there on. AdamAtan2 makes steps of one size of gradients of any size,
so rounding shows wherever a gradient is nearly zero.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.puzzle_step import random_boards
from benchmarks.record import publish
from benchmarks.timing import take_step
from trm_core.config import load_config
from trm_core.data.puzzles.reader import open_puzzles
from trm_core.optim.adam_atan2 import adam_atan2
from trm_core.training.features import resolve_features, resolved
from trm_core.training.initial_weights import load_initial, read_initial
from trm_core.training.trainer import Trainer

BATCH, CELLS, WIDTH, HEADS, IDENTIFIERS, T = 8, 16, 64, 2, 5, 4
RATE, EMBEDDING_RATE, DECAY = 1e-4, 1e-2, 1.0
NUDGE = 1e-7  # relative
CONFIGS = Path(__file__).parent.parent / "configs"
# Of the public code, and of ours where the config's own do not say it.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "TRM-Att": ("sudoku_att.yaml", {"pos_encodings": "rope", "mlp_t": False, "puzzle_emb_len": 3, "L_layers": 2}),
    "TRM-MLP": ("sudoku_mlp.yaml", {"pos_encodings": "none", "mlp_t": True, "puzzle_emb_len": 3, "L_layers": 2}),
    "HRM": ("sudoku_hrm.yaml", {"pos_encodings": "rope", "H_layers": 4, "L_layers": 4}),
}
CYCLES = {"TRM-Att": (3, 6), "TRM-MLP": (3, 6), "HRM": (2, 2)}


def our_trainer(name: str, folder: Path) -> Trainer:
    prefix = NETWORKS[name][1].get("puzzle_emb_len", 0)
    settings = {
        "data.path": folder, "data.eval_path": folder, "training.device": "cpu", "training.precision": "float32",
        "training.global_batch_size": BATCH, "training.lr_warmup_steps": 1, "training.base_lr": RATE,
        "training.weight_decay": DECAY, "training.puzzle_emb_lr": EMBEDDING_RATE,
        "training.puzzle_emb_weight_decay": DECAY, "training.log_interval": 1, "training.ema_decay": "null",
        "arch.hidden_size": WIDTH, "arch.num_heads": HEADS, "arch.puzzle_emb_ndim": WIDTH, "arch.max_steps": T,
        "arch.puzzle_emb_len": prefix, "dqn.halt_exploration": 0.0,
    }  # fmt: skip
    config = load_config(CONFIGS / NETWORKS[name][0], [f"{key}={value}" for key, value in settings.items()]).config
    data = open_puzzles(folder)
    features = resolve_features(config, data)
    return Trainer(resolved(config, features), features, [(data, 1.0)], torch.device("cpu"))


class Public:
    """The public code's model, and a step of its training loop."""

    def __init__(self, name: str, vocabulary: int) -> None:
        from models.losses import ACTLossHead  # type: ignore[import-not-found]
        from models.recursive_reasoning import hrm, trm  # type: ignore[import-not-found]
        from models.sparse_embedding import CastedSparseEmbeddingSignSGD_Distributed  # type: ignore[import-not-found]

        kind = hrm.HierarchicalReasoningModel_ACTV1 if name == "HRM" else trm.TinyRecursiveReasoningModel_ACTV1
        H, L = CYCLES[name]
        sizes: dict[str, Any] = {"batch_size": BATCH, "seq_len": CELLS, "vocab_size": vocabulary}
        sizes |= {"num_puzzle_identifiers": IDENTIFIERS, "puzzle_emb_ndim": WIDTH, "H_cycles": H, "L_cycles": L}
        sizes |= {"hidden_size": WIDTH, "num_heads": HEADS, "expansion": 4.0, "halt_max_steps": T, "H_layers": 0}
        sizes |= {"halt_exploration_prob": 0.0, "forward_dtype": "float32"}
        torch.manual_seed(0)
        self.model: Any = ACTLossHead(kind(sizes | NETWORKS[name][1]), "stablemax_cross_entropy").train()
        dense, _ = adam_atan2(list(self.model.parameters()), lr=RATE, betas=(0.9, 0.95), weight_decay=DECAY)
        buffers = self.model.model.puzzle_emb.buffers()
        self.optimizers = (
            CastedSparseEmbeddingSignSGD_Distributed(
                buffers, lr=EMBEDDING_RATE, weight_decay=DECAY, world_size=1
            ),
            dense,
        )  # fmt: skip
        self.carry: Any = None

    def step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Learn from a batch, of which rows that have not halted see nothing; the losses, means over rows."""
        if self.carry is None:
            self.carry = self.model.initial_carry(batch)
        self.carry, loss, metrics, _, _ = self.model(carry=self.carry, batch=batch, return_keys=[])
        (loss / BATCH).backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return {key: float(metrics[key]) / BATCH for key in metrics if key.endswith("loss")}

    def nudge(self) -> None:
        """Change the weights by as much as rounding would."""
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in self.model.parameters():
                if weight.dim() == 1:  # the biases of the halt logits, whose order decides when rows halt
                    continue
                weight.mul_(1 + NUDGE * torch.randn(weight.shape, generator=generator))

    def save(self, path: Path) -> Path:
        torch.save({f"_orig_mod.{key}": value for key, value in self.model.state_dict().items()}, path)
        return path


def compare(name: str, steps: int, folder: Path) -> dict[str, list[float]]:
    """After each step, how far ours and the nudged one of theirs are from theirs."""
    trainer = our_trainer(name, random_boards(folder / "boards", CELLS, IDENTIFIERS))
    model = trainer.state.model
    theirs = Public(name, model.data.vocab_size)
    nudged = Public(name, model.data.vocab_size)
    nudged.nudge()
    load_initial(model, theirs.save(folder / "first"))
    first = {key: value.clone() for key, value in model.state_dict().items()}
    found: dict[str, list[float]] = {"loss": [], "loss, nudged": [], "weights": [], "weights, nudged": []}
    for _ in range(steps):
        take_step(trainer)
        carry = trainer.state.carry
        assert carry.capsules.puzzles is not None
        batch = {"inputs": carry.capsules.sketches.int(), "labels": carry.labels.int()}
        batch["puzzle_identifiers"] = carry.capsules.puzzles.int()
        expected, other = theirs.step(batch), nudged.step(batch)
        if not all(torch.equal(one.carry.halted, carry.halted) for one in (theirs, nudged)):
            break  # from here on they see other samples
        logged = trainer.taker.averages.take()
        own = {key: logged[f"train/{key}"] for key in expected}
        found["loss"].append(apart(own, expected))
        found["loss, nudged"].append(apart(other, expected))
        at = read_initial(model, theirs.save(folder / "theirs")).weights
        beside = read_initial(model, nudged.save(folder / "nudged")).weights
        found["weights"].append(drift(model.state_dict(), at, first))
        found["weights, nudged"].append(drift(beside, at, first))
    return found


def apart(own: dict[str, float], theirs: dict[str, float]) -> float:
    """The largest difference of the losses."""
    return max(abs(own[key] - theirs[key]) for key in theirs)


def drift(own: dict[str, Tensor], theirs: dict[str, Tensor], first: dict[str, Tensor]) -> float:
    """How far weights are from theirs, relative to how far theirs have moved."""
    names = [key for key in theirs if theirs[key].is_floating_point()]

    def length(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
        return float(torch.cat([(a[key] - b[key]).double().flatten() for key in names]).norm())

    return length(own, theirs) / length(theirs, first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", type=Path, required=True, help="a clone of the public code")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.public))
    found = {}
    for name in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = compare(name, arguments.steps, Path(folder))
    publish({"steps": arguments.steps, "networks": found}, arguments.out)


if __name__ == "__main__":
    main()
