"""Small puzzle folders in the public layout, and overrides for training on them, shared by tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SIZE, VOCAB = 6, 5  # tokens per puzzle, size of the vocabulary

ARCH: dict[str, Any] = {
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "ffn_expansion": 1.0,
    "H_cycles": 2,
    "L_cycles": 1,
    "max_steps": 3,
    "pos_encodings": "rope",
    "puzzle_emb_ndim": 16,
    "puzzle_emb_len": 2,
    "q_head_type": "linear",
    "probabilities": "stablemax",
}


def write_puzzles(
    folder: Path, *, groups: int = 12, copies: int = 2, examples: int = 1, identifiers: int = 1, seed: int = 0
) -> Path:
    """Write puzzles whose answer is the question reversed. Tokens are 1 .. VOCAB - 1; 0 pads.

    Every group has `copies` puzzles of `examples` examples each; puzzle p has identifier p % identifiers.
    """
    rng = np.random.default_rng(seed)
    for split, count in (("train", groups), ("test", max(2, groups // 3))):
        (folder / split).mkdir(parents=True)
        puzzles = count * copies
        inputs = rng.integers(1, VOCAB, (puzzles * examples, SIZE)).astype(np.uint8)
        arrays = {
            "inputs": inputs,
            "labels": inputs[:, ::-1].copy(),
            "puzzle_identifiers": np.arange(puzzles, dtype=np.int32) % identifiers,
            "puzzle_indices": np.arange(puzzles + 1, dtype=np.int32) * examples,
            "group_indices": np.arange(count + 1, dtype=np.int32) * copies,
        }
        for name, array in arrays.items():
            np.save(folder / split / f"all__{name}.npy", array)
        metadata = {
            "pad_id": 0,
            "ignore_label_id": 0,
            "blank_identifier_id": 0,
            "vocab_size": VOCAB,
            "seq_len": SIZE,
            "num_puzzle_identifiers": identifiers,
            "total_groups": count,
            "mean_puzzle_examples": float(examples),
            "total_puzzles": puzzles,
            "sets": ["all"],
        }
        (folder / split / "dataset.json").write_text(json.dumps(metadata))
    names = ["<blank>", *(f"puzzle{number}" for number in range(1, identifiers))]
    (folder / "identifiers.json").write_text(json.dumps(names))
    return folder
