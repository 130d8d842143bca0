"""The puzzles that faults are planted in: the last cells of a row ask for what its first cells say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.capsules import Arrays

GIVEN, ASKED, VOCAB = 8, 4, 9


@dataclass
class Puzzles:
    """Inputs and labels [n, GIVEN + ASKED] by split and field. Token 0 is blank, and padding of labels."""

    splits: dict[str, Arrays]


def repeating(seed: int, rows: int = 1500) -> Puzzles:
    """Every asked cell is the token of the given one that stands GIVEN places before it."""
    random = np.random.default_rng(seed)
    splits: dict[str, Arrays] = {}
    for split, n in (("train", rows), ("test", rows // 5)):
        given = random.integers(1, VOCAB, (n, GIVEN))
        inputs = np.pad(given, ((0, 0), (0, ASKED)))
        splits[split] = {"inputs": inputs, "labels": np.concatenate([given, given[:, :ASKED]], 1)}
    return Puzzles(splits)


def write_folder(puzzles: Puzzles, folder: Path) -> None:
    """In the public layout, every puzzle a group of its own."""
    for split, fields in puzzles.splits.items():
        n = len(fields["inputs"])
        arrays: dict[str, Any] = {name: values.astype(np.uint8) for name, values in fields.items()}
        arrays["puzzle_identifiers"] = np.zeros(n, np.int32)
        arrays["puzzle_indices"] = arrays["group_indices"] = np.arange(n + 1, dtype=np.int32)
        (folder / split).mkdir(parents=True, exist_ok=True)
        for name, values in arrays.items():
            np.save(folder / split / f"all__{name}.npy", values)
        about = {
            "pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0, "vocab_size": VOCAB,
            "seq_len": GIVEN + ASKED, "num_puzzle_identifiers": 1, "total_groups": n, "mean_puzzle_examples": 1.0,
            "total_puzzles": n, "sets": ["all"],
        }  # fmt: skip
        (folder / split / "dataset.json").write_text(json.dumps(about))
    (folder / "identifiers.json").write_text(json.dumps(["<blank>"]))
