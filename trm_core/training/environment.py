"""What a run ran on: enough to repeat it."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import Any

import torch

from trm_core.errors import ConfigError

_PACKAGES = ("trm", "torch", "numpy", "h5py", "scikit-learn", "safetensors", "pydantic", "adam-atan2", "wandb")


def package_versions() -> dict[str, str | None]:
    """Installed versions of what matters; None where a package is absent."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def environment(device: torch.device, notes: list[str]) -> dict[str, Any]:
    """`notes`: automatic choices with their reasons."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "packages": package_versions(),
        "choices": notes,
    }


def pick_device(asked: str, local_rank: int = 0) -> tuple[torch.device, str]:
    """The device of `training.device`, and why: of several processes each takes a GPU of its own. Raises ConfigError
    for one that does not exist here.
    """
    if asked == "cuda" and torch.cuda.is_available():
        asked = f"cuda:{local_rank % torch.cuda.device_count()}"
    if asked != "auto":
        try:
            device = torch.device(asked)
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"device '{asked}' cannot be used: {reason}", hint="training.device=auto or cpu"
            ) from error
        return device, f"device {asked}: by the config"
    if torch.cuda.is_available():
        number = local_rank % torch.cuda.device_count()
        return torch.device("cuda", number), f"device cuda:{number}: a GPU is available"
    return torch.device("cpu"), "device cpu: no GPU is available"
