"""Describe the machine in every record, and publish records."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # those that decide the speed of matrix products


def describe_machine(threads: int) -> dict[str, Any]:
    """The processor, its features, its current load, and the versions that matter."""
    from trm_core.training.hardware import cpu_model  # imports torch

    return {
        "processor": cpu_model(),
        "cores": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in processor_flags()],
        "torch": version("torch"),
        "numpy": version("numpy"),
        "threads": threads,
        "load average": round(os.getloadavg()[0], 2),
    }


def processor_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The CPU flags; empty if the system does not list them (only Linux on x86 does)."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def publish(record: dict[str, Any], out: Path | None) -> None:
    """Print a record as one JSON document, and write it to `out` if given."""
    text = json.dumps(record, indent=2)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
    print(text)
