"""Compare our networks with those of the public TRM and HRM code at the same weights: how far are their logits apart?

    git clone https://github.com/SamsungSAILMontreal/TinyRecursiveModels /tmp/public
    python -m benchmarks.public_model --public /tmp/public --out benchmarks/results/public_model.json

Small networks with weights from a formula, saved as that code saves them and loaded as `trm convert` does; four
puzzles, five reasoning steps, float32. Prints the largest absolute difference of logits, halt and continue logits after
each step.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trm_core.config.schema import Config
from trm_core.model.capsule_state import CapsuleState
from trm_core.model.data_shape import DataShape
from trm_core.model.trm import TinyRecursiveModel
from trm_core.training.initial_weights import load_initial
from trm_core.training.public_weights import read_public, settings_of_public

ROWS, TOKENS, VOCABULARY, PUZZLES, STEPS = 4, 9, 7, 5, 5
SIZES: dict[str, Any] = {
    "batch_size": ROWS,
    "seq_len": TOKENS,
    "vocab_size": VOCABULARY,
    "num_puzzle_identifiers": PUZZLES,
    "puzzle_emb_ndim": 40,
    "H_cycles": 2,
    "L_cycles": 3,
    "H_layers": 2,
    "L_layers": 2,
    "hidden_size": 32,
    "expansion": 2.0,
    "num_heads": 4,
    "halt_max_steps": STEPS,
    "halt_exploration_prob": 0.1,
    "forward_dtype": "float32",
}
NETWORKS = {
    "TRM-Att": {"pos_encodings": "rope", "mlp_t": False, "puzzle_emb_len": 3},
    "TRM-MLP": {"pos_encodings": "none", "mlp_t": True, "puzzle_emb_len": 3},
    "TRM-Att, learned positions": {"pos_encodings": "learned", "mlp_t": False, "puzzle_emb_len": 3},
    "HRM": {"pos_encodings": "rope"},
}


def by_formula(number: int, shape: tuple[int, ...]) -> Tensor:
    """Sines of many frequencies, of the size of usual initial weights."""
    at = torch.arange(math.prod(shape), dtype=torch.float64)
    fan_in = shape[-1] if len(shape) > 1 else 1
    return (torch.sin(at * (0.7 + 0.013 * number) + number) * math.sqrt(2 / fan_in)).view(shape).float()


def compare(name: str, folder: Path) -> list[float]:
    """The largest difference after each step."""
    from models.recursive_reasoning import hrm, trm  # type: ignore[import-not-found]

    kind = hrm.HierarchicalReasoningModel_ACTV1 if name == "HRM" else trm.TinyRecursiveReasoningModel_ACTV1
    theirs = kind(SIZES | NETWORKS[name]).eval()
    weights = {key: by_formula(n, tuple(v.shape)) for n, (key, v) in enumerate(theirs.state_dict().items())}
    theirs.load_state_dict(weights)
    path = folder / "step_1"
    torch.save({f"_orig_mod.model.{key}": value for key, value in weights.items()}, path)
    arch = settings_of_public(path, read_public(path))
    arch |= {"H_cycles": 2, "L_cycles": 3, "max_steps": STEPS, "ffn_expansion": 2.0, "num_heads": 4}
    arch |= {"enable_q_continue": True, "puzzle_emb_len": NETWORKS[name].get("puzzle_emb_len", 0)}
    arch |= {"pos_encodings": NETWORKS[name]["pos_encodings"]}
    config = Config.model_validate({"arch": arch, "dqn": {"enabled": False}})
    shape = DataShape(TOKENS, 0, 0, 0, VOCABULARY, 2, float(TOKENS), vocab_size=VOCABULARY, num_puzzles=PUZZLES)
    ours = TinyRecursiveModel(config, shape, with_cmi=False).eval()
    load_initial(ours, path)
    tokens = torch.arange(ROWS * TOKENS).view(ROWS, TOKENS) % VOCABULARY
    puzzles = torch.arange(ROWS) % PUZZLES
    batch = {"inputs": tokens, "puzzle_identifiers": puzzles, "labels": tokens}
    state = CapsuleState.closed(tokens, None, None, None, torch.ones(TOKENS), puzzles=puzzles)
    carry, (z_H, z_L) = theirs.initial_carry(batch), ours.first_latents(ROWS)
    apart = []
    with torch.no_grad():
        for step in range(1, STEPS + 1):
            carry, expected = theirs(carry=carry, batch=batch)
            got = ours(z_H, z_L, state, torch.full((ROWS,), step), torch.ones(ROWS))
            z_H, z_L = got.z_H, got.z_L
            assert got.continue_logit is not None
            pairs = (
                (got.logits, expected["logits"]),
                (got.halt_logit, expected["q_halt_logits"]),
                (got.continue_logit, expected["q_continue_logits"]),
            )
            apart.append(max(float((a - b).abs().max()) for a, b in pairs))
    return apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", type=Path, required=True, help="a clone of the public code")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.public))
    found = {}
    for name in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = compare(name, Path(folder))
        print(f"{name}: {max(found[name]):.2e} at most")
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
