"""Checkpoints of the public TRM and HRM code: their names translated to ours, and what they tell about the network.

They are state dicts written by torch.save; `torch.compile` and the loss head prefix each name by `_orig_mod.` and
`model.`.

| theirs | ours |
| --- | --- |
| `inner.embed_tokens.embedding_weight` | `embedding.tokens.weight` |
| `inner.embed_pos.embedding_weight` | `embedding.position` |
| `inner.puzzle_emb.weights` | `embedding.puzzles.weights` |
| `inner.lm_head.weight` | `answer.output.weight` |
| `inner.q_head.{weight,bias}` | row 0: `q_head.halt_net`, row 1: `q_head.continue_net` |
| `inner.{H,L}_init` | `first_z_{H,L}` |
| `inner.L_level.layers.N`, `inner.H_level.layers.N` (HRM) | `recursion.low.blocks.N`, `recursion.high.blocks.N` |
| `.self_attn.{qkv,o}_proj`, `.mlp_t`, `.mlp` | `.attention.{qkv,out}`, `.mixer`, `.ffn` |
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from trm_core.data.torch_file import load_tensors
from trm_core.errors import CheckpointError, DataError

_HINT = "give the file that the public code saved, such as checkpoints/PROJECT/RUN/step_50000"
_PREFIXES = ("_orig_mod.", "model.", "inner.", "module.")
_WHOLE = {
    "embed_tokens.embedding_weight": "embedding.tokens.weight",
    "embed_pos.embedding_weight": "embedding.position",
    "puzzle_emb.weights": "embedding.puzzles.weights",
    "lm_head.weight": "answer.output.weight",
    "H_init": "first_z_H",
    "L_init": "first_z_L",
}
_BLOCK = re.compile(r"([HL])_level\.layers\.(\d+)\.(self_attn|mlp_t|mlp)\.(\w+)\.weight")
_MATRICES = {
    ("self_attn", "qkv_proj"): "attention.qkv",
    ("self_attn", "o_proj"): "attention.out",
    ("mlp_t", "gate_up_proj"): "mixer.gate_up",
    ("mlp_t", "down_proj"): "mixer.down",
    ("mlp", "gate_up_proj"): "ffn.gate_up",
    ("mlp", "down_proj"): "ffn.down",
}
_SETTINGS = "all_config.yaml"  # what the public code writes beside its checkpoints
_MOST_YAML_BYTES = 1 << 20


def read_public(path: Path) -> dict[str, Tensor]:
    """The weights under our names, in float32. Raises CheckpointError if the public code did not write the file."""
    try:
        content, size = load_tensors(path, _HINT)
    except DataError as error:
        raise CheckpointError(error.message, hint=error.hint) from error
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected named weights", hint=_HINT)
    found: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor", hint=_HINT)
        if value.numel() * value.element_size() > size:
            raise CheckpointError(f"{path}: {name} claims more than the file's {size} bytes hold", hint=_HINT)
        found |= _renamed(path, _bare(name), value.detach().to(torch.float32))
    if "embedding.tokens.weight" not in found:
        raise CheckpointError(f"{path}: has no token embedding, so it is not a checkpoint of TRM or HRM", hint=_HINT)
    if not any(name.startswith("recursion.high.") for name in found):  # tied: one network under both names
        found |= {name.replace(".low.", ".high."): v for name, v in found.items() if name.startswith("recursion.low.")}
    return found


def settings_of_public(path: Path, weights: dict[str, Tensor]) -> dict[str, Any]:
    """`arch` settings implied by the weights and, if it is there, by the settings file beside the checkpoint."""
    tokens, position = weights["embedding.tokens.weight"], weights.get("embedding.position")
    layers = {name.split(".")[3] for name in weights if name.startswith("recursion.low.blocks.")}
    mlp = "recursion.low.blocks.0.mixer.down.weight" in weights
    low = weights.get("recursion.low.blocks.0.ffn.down.weight")
    high = weights.get("recursion.high.blocks.0.ffn.down.weight")
    puzzles = weights.get("embedding.puzzles.weights")
    width = tokens.shape[1]
    found: dict[str, Any] = {
        "hidden_size": width,
        "num_layers": len(layers),
        "num_heads": max(1, width // 64),
        "mixer": "mlp" if mlp else "attention",
        "tied": low is high or (low is not None and high is not None and torch.equal(low, high)),
        "ffn_multiple": 256,
        "pos_encodings": "learned" if position is not None else "none" if mlp else "rope",
        "q_head_type": "linear",
        "probabilities": "stablemax",
        "puzzle_emb_ndim": 0 if puzzles is None else puzzles.shape[1],
    }
    if not found["tied"]:  # HRM's rules, for which its code has no settings
        found |= {"puzzle_emb_len": 0, "enable_q_continue": True, "grad_low_cycles": 1}
    theirs = _settings(path.parent / _SETTINGS)
    same = ("H_cycles", "L_cycles", "num_heads", "pos_encodings", "rope_theta", "puzzle_emb_ndim", "puzzle_emb_len")
    found |= {name: theirs[name] for name in same if name in theirs}
    for name, ours in (("halt_max_steps", "max_steps"), ("expansion", "ffn_expansion")):
        if name in theirs:
            found[ours] = theirs[name]
    if "no_ACT_continue" in theirs:
        found["enable_q_continue"] = theirs["no_ACT_continue"] is False
    loss = theirs.get("loss")
    if isinstance(loss, dict) and loss.get("loss_type") == "softmax_cross_entropy":
        found["probabilities"] = "softmax"
    return found


def _bare(name: str) -> str:
    """The name without the prefixes of wrappers."""
    while (begin := next((p for p in _PREFIXES if name.startswith(p)), None)) is not None:
        name = name[len(begin) :]
    return name


def _renamed(path: Path, name: str, value: Tensor) -> dict[str, Tensor]:
    if name in _WHOLE:
        return {_WHOLE[name]: value}
    if name in ("q_head.weight", "q_head.bias") and len(value) == 2:
        kind = name.removeprefix("q_head.")
        return {f"q_head.halt_net.{kind}": value[:1], f"q_head.continue_net.{kind}": value[1:]}
    match = _BLOCK.fullmatch(name)
    if match is not None and (match[3], match[4]) in _MATRICES:
        level = {"H": "high", "L": "low"}[match[1]]
        return {f"recursion.{level}.blocks.{match[2]}.{_MATRICES[match[3], match[4]]}.weight": value}
    raise CheckpointError(f"{path}: {name} is not one of the weights of TRM or HRM", hint=_HINT)


def _settings(path: Path) -> dict[str, Any]:
    """The `arch` section of the public code's settings file; empty if there is no such file."""
    try:
        if path.stat().st_size > _MOST_YAML_BYTES:
            return {}
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})", hint="remove it to do without it") from error
    arch = content.get("arch") if isinstance(content, dict) else None
    return arch if isinstance(arch, dict) else {}
