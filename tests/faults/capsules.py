"""Capsules as arrays, to be read from a file, changed and written to another. Also generates capsules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from trm_core.config.schema import BuildConfig, DataConfig
from trm_core.data.checksum import checksums
from trm_core.data.source import ensure_built
from trm_core.data.store import CapsuleWriter, open_capsules

Arrays = dict[str, NDArray[Any]]
CHECKSUM_SEED = 7


@dataclass
class Capsules:
    """Arrays by split and field, with the file's manifest and prices."""

    splits: dict[str, Arrays]
    manifest: dict[str, Any]
    prices: NDArray[Any] | None = None

    @property
    def classes(self) -> int:
        return int(self.manifest["num_classes"])


def built(source: str, build: Mapping[str, Any]) -> Capsules:
    """The capsules that `data.source` builds."""
    path = ensure_built(DataConfig(source=source, build=BuildConfig.model_validate(build)))
    with open_capsules(path) as file:
        manifest, prices = dict(file.manifest), np.array(file.prices)
    for made_by_the_writer in ("counts", "content_hash", "dataset_hashes", "tool_version"):
        manifest.pop(made_by_the_writer, None)
    with h5py.File(path, "r") as h5:
        splits = {
            split: {name: np.array(h5[split][name]) for name in h5[split]}
            for split in ("train", "validation", "test")
            if split in h5
        }
    return Capsules(splits, manifest, prices)


def generated(
    seed: int, rows: int = 1500, k: int = 6, m: int = 2, dim: int = 6, classes: int = 4, noise: float = 0.8
) -> Capsules:
    """Generate capsules: the coarse half of a class shows in the sketches, the fine half only in the children.

    The children of a capsule lie on opposite sides of its sketch, which is their mean. Every capsule shows the fine
    half with noise, so that opening one helps and opening several helps more.
    """
    random = np.random.default_rng(seed)
    coarse = random.normal(size=((classes + 1) // 2, dim))
    fine = random.normal(size=(2, dim))
    splits: dict[str, Arrays] = {}
    for split, n in (("train", rows), ("validation", max(rows // 5, 100))):
        labels = random.integers(0, classes, n)
        sketches = coarse[labels // 2][:, None] + noise * random.normal(size=(n, k, dim))
        detail = fine[labels % 2][:, None] + noise * random.normal(size=(n, k, dim))
        sign = np.where(np.arange(m) % 2, -1.0, 1.0) if m > 1 else np.ones(1)
        children = sketches[:, :, None] + sign[:, None] * detail[:, :, None]
        arrays = {"sketches": sketches, "children": children, "labels": labels}
        splits[split] = {
            name: array.astype(np.float32) if array.dtype.kind == "f" else array for name, array in arrays.items()
        }
    return Capsules(with_checksums(splits, 4), about(classes))


def about(classes: int) -> dict[str, Any]:
    return {"task": "classes", "num_classes": classes, "checksum_seed": CHECKSUM_SEED, "kind": "arrays"}


def with_checksums(splits: dict[str, Arrays], width: int) -> dict[str, Arrays]:
    """The same arrays with checksums of the children, of this width."""
    return {
        split: {**arrays, "checksums": checksums(arrays["children"].astype(np.float32), width, CHECKSUM_SEED)}
        for split, arrays in splits.items()
    }


def write(capsules: Capsules, path: Path) -> None:
    """Write the file, with checksums that match the children as they are now."""
    first = capsules.splits["train"]
    _, k, dim = first["sketches"].shape
    width = first["checksums"].shape[-1] if "checksums" in first and "children" in first else 0
    rank: Any = first["labels"].ndim
    writer = CapsuleWriter(
        path,
        num_capsules=k,
        dim=dim,
        num_children=first["children"].shape[2] if "children" in first else 0,
        checksum_dim=width,
        label_rank=rank,
        dtype="float32",
        prices=capsules.prices,
        with_parents="parents" in first,
        with_mask="mask" in first,
        with_modality="modality" in first,
        with_ids="ids" in first,
        overwrite=True,
    )
    with writer:
        for split, arrays in capsules.splits.items():
            whole = dict(arrays)
            whole.pop("checksums", None)
            if width:
                seed = capsules.manifest.get("checksum_seed", CHECKSUM_SEED)
                whole["checksums"] = checksums(whole["children"].astype(np.float32), width, seed)
            writer.append(split, whole)
        writer.close(capsules.manifest)
