"""Which process of how many this is, from what torchrun or srun put in the environment. Does not import torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from trm_core.errors import ConfigError

_FIRST_PORT, _PORTS = 20_000, 20_000


@dataclass(frozen=True)
class Place:
    """One process among those that train together."""

    rank: int = 0
    local_rank: int = 0  # among the processes of this machine; decides which GPU it uses
    world_size: int = 1
    address: str = ""  # of rank 0's machine
    port: int = 0
    why: str = "a single process"


def find_place(environment: Mapping[str, str] = os.environ) -> Place:
    """By torchrun's variables if they are set, else by those of a job step that srun started, else a single process.

    A batch script has SLURM_NTASKS too but is no job step: `trm train` without srun is a single process there. Raises
    ConfigError for variables that contradict each other.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        if _number(environment, "WORLD_SIZE", 1) == 1:
            return Place(why="a single process, started by torchrun")
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if name not in environment]
        if missing:
            raise ConfigError(
                f"RANK and WORLD_SIZE are set, but not {', '.join(missing)}",
                hint="start with torchrun, srun or trm train --nproc, or unset RANK and WORLD_SIZE",
            )
        return _checked(environment, *names, "torchrun")
    if _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
        port = _FIRST_PORT + _number(environment, "SLURM_JOB_ID", 0) % _PORTS
        address = first_host(environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST", "127.0.0.1")))
        found = {"MASTER_ADDR": address, "MASTER_PORT": str(port), **environment}
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "MASTER_ADDR", "MASTER_PORT")
        return _checked(found, *names, "srun")
    return Place()


def by_torchrun() -> bool:
    """Whether torchrun's agent started this process, as it does under `--nproc` too."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _number(environment: Mapping[str, str], name: str, otherwise: int) -> int:
    try:
        return int(environment.get(name, otherwise))
    except ValueError as error:
        raise ConfigError(
            f"{name}={environment[name]!r} is not a number", hint=f"unset {name}, or start with torchrun or srun"
        ) from error


def _checked(
    environment: Mapping[str, str], rank: str, local: str, world: str, address: str, port: str, starter: str
) -> Place:
    try:
        place = Place(
            int(environment[rank]),
            int(environment[local]),
            int(environment[world]),
            environment[address],
            int(environment[port]),
        )
    except (KeyError, ValueError) as error:
        raise ConfigError(f"the environment that {starter} sets is incomplete: {error}") from error
    if not 0 <= place.rank < place.world_size:
        raise ConfigError(f"{rank}={place.rank} is not below {world}={place.world_size}")
    why = f"process {place.rank} of {place.world_size}, started by {starter}"
    return Place(place.rank, place.local_rank, place.world_size, place.address, place.port, why)


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: 'gpu[003-007,12],x1' -> 'gpu003'."""
    match = re.match(r"(?:[^\[,]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes if match is None else match.group())
