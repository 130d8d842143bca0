"""The machine that a run uses."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from trm_core.training.memory_breakdown import physical_memory


def describe_hardware() -> dict[str, Any]:
    """Processor, memory and GPUs, with the versions of their libraries; None for what cannot be found out."""
    return {
        "hostname": platform.node(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(physical_memory() / 1e9, 1),
        "gpus": gpus(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "nccl": nccl_version(),
        "gpu_driver": gpu_driver(),
    }


def cpu_model() -> str:
    """The CPU's name, from /proc/cpuinfo if there is one: `platform` does not read that on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def gpus() -> list[dict[str, Any]]:
    """The GPUs that this process may use."""
    if not torch.cuda.is_available():
        return []
    found = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return [{"name": gpu.name, "memory_gb": round(gpu.total_memory / 1e9, 1)} for gpu in found]


def nccl_version() -> str | None:
    if not (torch.cuda.is_available() and torch.distributed.is_available() and torch.distributed.is_nccl_available()):
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))


def gpu_driver(path: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The version of NVIDIA's kernel module, read without starting a process such as nvidia-smi."""
    try:
        words = path.read_text().split("Kernel Module", 1)[1].split()
    except (OSError, IndexError):
        return None
    # "... Kernel Module for x86_64  550.54.14  Release Build ...", or without the architecture.
    return next((word for word in words if word[0].isdigit()), None)
