"""The outcome of a build: returned by `build_capsules`, printed by the CLI."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass
class BuildReport:
    """Facts about the file that was written. `expansion_value` is what `trm_core.data.probe` measured, or None."""

    path: Path
    kind: str
    reason: str
    encoder: str
    counts: dict[str, int]
    num_capsules: int
    num_children: int
    dim: int
    checksum_dim: int
    task: str
    num_classes: int
    class_names: list[str] | None
    duplicates: int
    expansion_value: dict[str, Any] | None
    content_hash: str
    bytes: int
    seconds: float
    chunks: int
    reused_chunks: int
    messages: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path)}
