"""What this installation is: versions, optional extras and devices, for `trm --version` and bug reports.

Nothing here fails because a package is absent or broken: that is what users want to find out.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib import metadata

PACKAGES = ("torch", "numpy", "h5py", "safetensors", "scikit-learn", "pydantic", "typer")
DEVELOPMENT = "dev"  # tools of those who work on trm itself
_REQUIREMENT = re.compile(r"""([\w.-]+).*extra\s*==\s*['"]([\w.-]+)['"]""")


@dataclass(frozen=True)
class About:
    """`packages`: their versions. `extras`: what each one lacks (nothing: it can be used). `devices_problem`: why torch
    could not list the devices.
    """

    version: str | None
    python: str
    platform: str
    packages: dict[str, str | None]
    extras: dict[str, list[str]]
    devices: list[str]
    devices_problem: str | None


def about() -> About:
    """Takes a second or two, because it imports torch to list the devices."""
    devices, problem = find_devices()
    return About(
        version=installed("trm"),
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        platform=platform.platform(),
        packages={name: installed(name) for name in PACKAGES},
        extras=missing_of_extras(),
        devices=devices,
        devices_problem=problem,
    )


def installed(package: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def missing_of_extras() -> dict[str, list[str]]:
    """Extra -> which of its distributions are not installed. Empty if trm itself is run without being installed."""
    try:
        requirements = metadata.requires("trm") or []
    except metadata.PackageNotFoundError:
        return {}
    wanted: dict[str, list[str]] = {}
    for requirement in requirements:
        found = _REQUIREMENT.match(requirement)
        if found and found[2] != DEVELOPMENT:
            wanted.setdefault(found[2], []).append(found[1])
    return {extra: [name for name in names if installed(name) is None] for extra, names in sorted(wanted.items())}


def find_devices() -> tuple[list[str], str | None]:
    """(["cpu: ...", "cuda:0: ...", ...], None), or no devices and why torch cannot be imported."""
    try:
        import torch

        from trm_core.training.hardware import cpu_model, gpus
    except (ImportError, OSError) as error:  # a library built for another CUDA version raises OSError
        return [], f"torch cannot be imported: {str(error).splitlines()[0]}"
    devices = [f"cpu: {cpu_model()}, {torch.get_num_threads()} threads"]
    devices += [f"cuda:{index}: {gpu['name']}, {gpu['memory_gb']} GB" for index, gpu in enumerate(gpus())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices, None
