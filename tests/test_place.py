"""Finding the rank and world size from the environment that torchrun and srun set."""

from __future__ import annotations

import pytest

from trm_core.distributed.place import Place, find_place, first_host
from trm_core.errors import ConfigError

STEP = {
    "SLURM_JOB_ID": "41234",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[003-004],x1",
}
TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu1", "gpu1"),
        ("127.0.0.1", "127.0.0.1"),
        ("gpu[003-007,12],x1", "gpu003"),
        ("gpu[12,3-7]", "gpu12"),
        ("login-a,gpu[1-2]", "login-a"),
        ("rack2-gpu[08]-ib", "rack2-gpu08-ib"),
        ("rack[1-2]gpu[3-4]", "rack1gpu3"),
        ("n1.cluster.example", "n1.cluster.example"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_a_task_of_a_step() -> None:
    place = find_place(STEP)
    assert (place.rank, place.local_rank, place.world_size) == (5, 1, 8)
    assert (place.address, place.port) == ("gpu003", 20_000 + 1_234)
    assert place.why == "process 5 of 8, started by srun"


def test_an_address_that_was_set_by_hand_is_kept() -> None:
    place = find_place({**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"})
    assert (place.address, place.port) == ("10.0.0.1", 1234)


def test_torchrun_wins_over_slurm() -> None:
    place = find_place({**STEP, **TORCHRUN})
    assert (place.rank, place.world_size, place.address, place.port) == (1, 2, "localhost", 29500)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_NODELIST": "gpu[1-2]"},
        {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"},
    ],
    ids=["nothing", "a batch script, no step", "a step of one task", "torchrun of one"],
)
def test_a_single_process(environment: dict[str, str]) -> None:
    place = find_place(environment)
    assert (place.rank, place.world_size, place.address) == (0, 1, "")
    assert place.why.startswith("a single process")
    assert Place().world_size == 1


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({name: value for name, value in STEP.items() if name != "SLURM_PROCID"}, "SLURM_PROCID"),
        ({name: value for name, value in STEP.items() if name != "SLURM_LOCALID"}, "SLURM_LOCALID"),
        ({**STEP, "SLURM_PROCID": "8"}, "SLURM_PROCID=8 is not below SLURM_STEP_NUM_TASKS=8"),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "many"}, "many"),
        ({**STEP, "SLURM_JOB_ID": "none"}, "none"),
        ({**TORCHRUN, "WORLD_SIZE": "two"}, "two"),
        ({**TORCHRUN, "RANK": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
    ],
)
def test_variables_that_are_missing_or_odd(environment: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        find_place(environment)
    assert words in refused.value.message
