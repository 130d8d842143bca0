"""A small honest capsule file, and ways to make others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trm_core.data.checksum import checksums
from trm_core.data.store import CapsuleWriter

K, M, D, R, CLASSES, SEED = 3, 2, 4, 5, 7, 11


def make_arrays(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows with every kind of field."""
    random = np.random.default_rng(seed)
    children = random.normal(size=(n, K, M, D)).astype(np.float32)
    return {
        "sketches": children.mean(2),
        "children": children,
        "checksums": checksums(children, R, SEED),
        "labels": random.integers(0, CLASSES, n),
        "parents": np.tile([-1, 0, 1], (n, 1)),
        "mask": np.ones((n, K), bool),
        "modality": np.zeros(n, np.int64),
        "ids": np.arange(n),
    }


def write_file(path: Path, rows: dict[str, int], **manifest: Any) -> Path:
    """A complete file with all fields and prices."""
    writer = CapsuleWriter(
        path,
        num_capsules=K,
        dim=D,
        num_children=M,
        checksum_dim=R,
        with_parents=True,
        with_mask=True,
        with_modality=True,
        with_ids=True,
        prices=np.array([1.0, 2.0, 0.5]),
    )
    with writer:
        for index, (split, n) in enumerate(rows.items()):
            writer.append(split, make_arrays(n, index))
        writer.close({"task": "classes", "num_classes": CLASSES, "checksum_seed": SEED, **manifest})
    return path


@pytest.fixture
def arrays() -> Callable[..., dict[str, np.ndarray]]:
    return make_arrays


@pytest.fixture
def capsule_path(tmp_path: Path) -> Path:
    """100 training and 30 test rows, all fields; k=3, m=2, D=4, R=5, 7 classes."""
    return write_file(tmp_path / "capsules.h5", {"train": 100, "test": 30})


@pytest.fixture
def write_capsules() -> Callable[..., Path]:
    return write_file
