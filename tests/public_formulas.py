"""TRM and HRM as in their papers, in numpy and float64, with weights from a formula: the expected outputs of
checkpoints of the public code. Written from arXiv 2510.04871 (sections 2 to 4), 2506.21734 (section 2) and the names
and shapes in such checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a small network."""

    tied: bool = True
    mlp: bool = False
    pos_encodings: str = "rope"
    tokens: int = 9
    vocabulary: int = 7
    puzzles: int = 5
    width: int = 32
    heads: int = 4
    prefix: int = 3
    puzzle_width: int = 40
    H_cycles: int = 2
    L_cycles: int = 3
    layers: int = 2
    expansion: float = 2.0

    @property
    def positions(self) -> int:
        return self.prefix + self.tokens


def inner(width: int, expansion: float) -> int:
    """Hidden width of SwiGLU: two thirds of the expansion, up to a multiple of 256."""
    return math.ceil(round(expansion * width * 2 / 3) / 256) * 256


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint, without the prefixes that wrappers add to names."""
    D, hidden = sizes.width, inner(sizes.width, sizes.expansion)
    found: dict[str, tuple[int, ...]] = {
        "H_init": (D,),
        "L_init": (D,),
        "embed_tokens.embedding_weight": (sizes.vocabulary, D),
        "lm_head.weight": (sizes.vocabulary, D),
        "q_head.weight": (2, D),
        "q_head.bias": (2,),
        "puzzle_emb.weights": (sizes.puzzles, sizes.puzzle_width),
    }
    if sizes.pos_encodings == "learned":
        found["embed_pos.embedding_weight"] = (sizes.positions, D)
    for level in ("L",) if sizes.tied else ("H", "L"):
        for layer in range(sizes.layers):
            at = f"{level}_level.layers.{layer}"
            if sizes.mlp:
                over = inner(sizes.positions, sizes.expansion)
                found[f"{at}.mlp_t.gate_up_proj.weight"] = (2 * over, sizes.positions)
                found[f"{at}.mlp_t.down_proj.weight"] = (sizes.positions, over)
            else:
                found[f"{at}.self_attn.qkv_proj.weight"] = (3 * D, D)
                found[f"{at}.self_attn.o_proj.weight"] = (D, D)
            found[f"{at}.mlp.gate_up_proj.weight"] = (2 * hidden, D)
            found[f"{at}.mlp.down_proj.weight"] = (D, hidden)
    return found


def weights(sizes: Sizes) -> dict[str, Array]:
    """Sines of many frequencies, of the size of usual initial weights."""
    found = {}
    for number, (name, shape) in enumerate(shapes(sizes).items()):
        at = np.arange(math.prod(shape), dtype=np.float64)
        fan_in = shape[-1] if len(shape) > 1 else 1
        found[name] = (np.sin(at * (0.7 + 0.013 * number) + number) * math.sqrt(2 / fan_in)).reshape(shape)
    return found


def rms_norm(x: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def swiglu(x: Array, gate_up: Array, down: Array) -> Array:
    gate, up = np.split(x @ gate_up.T, 2, -1)
    return (gate / (1 + np.exp(-gate)) * up) @ down.T


def attention(x: Array, qkv: Array, out: Array, sizes: Sizes) -> Array:
    B, K, D = x.shape
    head = D // sizes.heads
    q, k, v = (part.reshape(B, K, sizes.heads, head).transpose(0, 2, 1, 3) for part in np.split(x @ qkv.T, 3, -1))
    if sizes.pos_encodings == "rope":
        angle = np.outer(np.arange(K), 10000.0 ** (-np.arange(0, head, 2) / head))
        turn = np.exp(1j * angle)

        def rotated(y: Array) -> Array:
            turned = (y[..., : head // 2] + 1j * y[..., head // 2 :]) * turn
            return np.concatenate([turned.real, turned.imag], -1)

        q, k = rotated(q), rotated(k)
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(head)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = scores / scores.sum(-1, keepdims=True) @ v
    return mixed.transpose(0, 2, 1, 3).reshape(B, K, D) @ out.T


def network(level: str, z: Array, of: dict[str, Array], sizes: Sizes) -> Array:
    for layer in range(sizes.layers):
        at = f"{level}_level.layers.{layer}"
        if sizes.mlp:
            turned = z.transpose(0, 2, 1)
            matrices = (of[f"{at}.mlp_t.gate_up_proj.weight"], of[f"{at}.mlp_t.down_proj.weight"])
            z = rms_norm(turned + swiglu(turned, *matrices)).transpose(0, 2, 1)
        else:
            matrices = (of[f"{at}.self_attn.qkv_proj.weight"], of[f"{at}.self_attn.o_proj.weight"])
            z = rms_norm(z + attention(z, *matrices, sizes))
        z = rms_norm(z + swiglu(z, of[f"{at}.mlp.gate_up_proj.weight"], of[f"{at}.mlp.down_proj.weight"]))
    return z


def steps(sizes: Sizes, tokens: NDArray[np.int64], puzzles: NDArray[np.int64], count: int) -> list[tuple[Array, Array]]:
    """(logits [B, S, V], halt and continue logits [B, 2]) after each of `count` reasoning steps."""
    of, D, B = weights(sizes), sizes.width, len(tokens)
    own = np.zeros((B, sizes.prefix * D))
    own[:, : sizes.puzzle_width] = of["puzzle_emb.weights"][puzzles]
    x = np.concatenate([own.reshape(B, sizes.prefix, D), of["embed_tokens.embedding_weight"][tokens]], 1)
    if sizes.pos_encodings == "learned":
        x = (x + of["embed_pos.embedding_weight"]) / math.sqrt(2)
    x = x * math.sqrt(D)
    z_H, z_L = (np.tile(of[f"{level}_init"], (B, sizes.positions, 1)) for level in "HL")
    found = []
    for _ in range(count):
        for _ in range(sizes.H_cycles):
            for _ in range(sizes.L_cycles):
                z_L = network("L", z_L + z_H + x, of, sizes)
            z_H = network("L" if sizes.tied else "H", z_H + z_L, of, sizes)
        logits = z_H[:, sizes.prefix :] @ of["lm_head.weight"].T
        found.append((logits, z_H[:, 0] @ of["q_head.weight"].T + of["q_head.bias"]))
    return found
