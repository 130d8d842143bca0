"""Small made-up ARC tasks as JSON documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

SIDES = st.integers(1, 30)


def grids(sides: st.SearchStrategy[int] = SIDES) -> st.SearchStrategy[np.ndarray]:
    """uint8 [h, w] of colours."""
    return st.builds(
        lambda height, width, seed: np.random.default_rng(seed).integers(10, size=(height, width)).astype(np.uint8),
        sides,
        sides,
        st.integers(0, 2**32 - 1),
    )


def pair(random: np.random.Generator, side: int = 6) -> dict[str, Any]:
    return {part: random.integers(10, size=random.integers(2, side, size=2)).tolist() for part in ("input", "output")}


def task(seed: int, train: int = 3, test: int = 1) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {"train": [pair(random) for _ in range(train)], "test": [pair(random) for _ in range(test)]}


def write(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def write_subset(folder: Path, subset: str, tasks: dict[str, dict[str, Any]], *, solved: bool = True) -> Path:
    """Write tasks as Kaggle's pair of files; the path of the one with the challenges."""
    challenges = {
        name: {"train": one["train"], "test": [{"input": each["input"]} for each in one["test"]]}
        for name, one in tasks.items()
    }
    if solved:
        solutions = {name: [each["output"] for each in one["test"]] for name, one in tasks.items()}
        write(folder / f"made_{subset}_solutions.json", solutions)
    return write(folder / f"made_{subset}_challenges.json", challenges)
