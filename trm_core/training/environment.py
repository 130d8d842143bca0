"""What a run ran on, in enough detail to repeat it: `environment.json`, with an entry for every start of the run."""

from __future__ import annotations

import itertools
import json
import os
import platform
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from trm_core.distributed.collectives import world_size
from trm_core.training import run_dir
from trm_core.training.git_state import DIFF_LIMIT, Repository, code_repository, repository
from trm_core.training.hardware import describe_hardware

_PACKAGES = ("trm", "torch", "numpy", "h5py", "scikit-learn", "safetensors", "pydantic", "adam-atan2", "wandb")
# Only variables named here, or with a prefix known to hold no secrets: the whole environment is full of them.
_VARIABLES = {
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_LAUNCH_BLOCKING",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "PYTHONHASHSEED",
    "TRM_CACHE",
    "WANDB_MODE",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_PARTITION",
    "SLURM_CLUSTER_NAME",
    "SLURM_NNODES",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
}
_PREFIXES = ("NCCL_", "TORCH_NCCL_")


def record_start(run: Path, device: torch.device, seed: int, step: int, notes: list[str]) -> None:
    """Add this start to `environment.json`, with its uncommitted diffs beside it. step: how many were done before;
    notes: automatic choices with their reasons.
    """
    path = run / run_dir.ENVIRONMENT
    starts = earlier_starts(path)
    working = Path.cwd()
    found = {"code": code_repository(Path(__file__).parent.parent), "working_directory": repository(working)}
    repositories = {name: checkout for name, checkout in found.items() if checkout is not None}
    if len({checkout.record["root"] for checkout in repositories.values()}) < len(repositories):
        del repositories["working_directory"]  # it is the same checkout
    entry = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "working_directory": str(working),
        "pid": os.getpid(),
        "seed": seed,
        "step": step,
        "device": str(device),
        "processes": world_size(),
        "threads": torch.get_num_threads(),
        "choices": notes,
        "git": {name: save_diff(run, checkout) for name, checkout in repositories.items()},
        "variables": relevant_variables(),
        "hardware": describe_hardware(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "installed": installed_packages(),
    }
    run_dir.write_json(path, {"starts": [*starts, entry]})


def earlier_starts(path: Path) -> list[Any]:
    """The entries of earlier starts. What cannot be parsed, or has another form, is kept as it is."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    try:
        record = json.loads(text)
    except json.JSONDecodeError:
        return [{"unreadable": text}]
    starts = record.get("starts") if isinstance(record, dict) else None
    return starts if isinstance(starts, list) else [record]


def save_diff(run: Path, found: Repository) -> dict[str, Any]:
    """The record of a repository, with its diff saved in the run directory: once for all starts with the same diff."""
    if not found.diff:
        return found.record
    diff, cut = found.diff[:DIFF_LIMIT], len(found.diff) > DIFF_LIMIT
    if cut:
        diff += f"\n... cut after {DIFF_LIMIT:,} bytes\n".encode()
    names = (run_dir.DIFF if n == 1 else f"uncommitted-{n}.diff" for n in itertools.count(1))
    try:
        for path in map(run.joinpath, names):
            if not path.exists():
                path.write_bytes(diff)
            if path.is_file() and path.read_bytes() == diff:  # reading a pipe would never end
                return {**found.record, "diff": path.name, "diff_cut": cut}
    except OSError as error:
        return {**found.record, "incomplete": [*found.record.get("incomplete", []), f"diff: {error.strerror}"]}
    raise AssertionError("the names do not end")


def relevant_variables() -> dict[str, str]:
    """The environment variables that affect a run."""
    return {
        name: value for name, value in sorted(os.environ.items()) if name in _VARIABLES or name.startswith(_PREFIXES)
    }


def package_versions() -> dict[str, str | None]:
    """Installed versions of the packages that matter; None for one that is absent."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


@cache
def installed_packages() -> list[str]:
    """Everything that is installed, as `pip freeze` lists it: name==version."""
    # Each file is read once: `found.name` and `found.version` would parse all of it each time.
    read = [found.metadata for found in metadata.distributions()]
    # A damaged installation may lack its name.
    return sorted({f"{about['Name']}=={about['Version']}" for about in read if about["Name"]}, key=str.lower)
