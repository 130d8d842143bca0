"""Which device is chosen, and the errors for devices that cannot be used."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

import trm_core.prepare
from trm_core.devices import pick_device, reduced_precision
from trm_core.distributed import processes
from trm_core.distributed.place import Place
from trm_core.distributed.processes import joined, peers_watched, stdout_kept_clean
from trm_core.errors import ConfigError, ResourceError, is_out_of_memory
from trm_core.optim import muon
from trm_core.prepare import RunHooks, prepare


def test_a_device_without_double_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as Apple's: a run would fail at its first line of metrics."""
    zeros = torch.zeros

    def on_mps(*sizes: int, dtype: torch.dtype | None = None, **more: Any) -> torch.Tensor:
        if dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return zeros(*sizes, dtype=dtype)

    monkeypatch.setattr(torch, "zeros", on_mps)
    with pytest.raises(
        ConfigError, match="device 'mps' cannot be used: Cannot convert a MPS Tensor to float64"
    ) as told:
        pick_device("mps")
    assert told.value.hint == "training.device=auto or cpu"


def test_the_processor_is_always_there() -> None:
    assert pick_device("cpu")[0] == torch.device("cpu")


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine that says it has a GPU; collects those that became the current one."""
    found: list[torch.device] = []
    zeros = torch.zeros
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", found.append)
    monkeypatch.setattr(torch, "zeros", lambda *sizes, device=None, dtype=None: zeros(*sizes, dtype=dtype))
    return found


def test_the_chosen_gpu_becomes_the_current_one(chosen: list[torch.device]) -> None:
    """Kernels of other packages, and torch's answers about "the" GPU, would be those of the first one otherwise."""
    for asked in ("cuda:1", "cuda", "auto", "cpu"):
        pick_device(asked)
    assert chosen == [torch.device("cuda", number) for number in (1, 0, 0)]


def test_a_gpu_that_cannot_compute_is_not_chosen(chosen: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that this build of torch has no kernels for: it counts as available all the same."""

    def no_kernel(*sizes: int, **more: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ...")

    monkeypatch.setattr(torch, "zeros", no_kernel)
    with pytest.raises(ConfigError, match="device 'cuda:0' cannot be used: CUDA error: no kernel image") as told:
        pick_device("auto")
    assert told.value.hint == "training.device=cpu"
    assert chosen == []


def test_one_gpu_is_not_given_to_two_processes(chosen: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL would refuse it with an obscure error. Processes of srun that each see one GPU are fine."""
    assert pick_device("auto", 1)[0] == torch.device("cuda", 0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert pick_device("auto", 0)[0] == torch.device("cuda", 0)
    with pytest.raises(ConfigError, match="local process 1 has no GPU of its own: this machine has 1") as told:
        pick_device("auto", 1)
    assert told.value.hint is not None
    assert "--nproc 1" in told.value.hint
    with pytest.raises(ConfigError, match="'cuda:0' is a single GPU, but there are several processes"):
        pick_device("cuda:0", 1)


@pytest.mark.parametrize("gpus", [True, False])
def test_a_failed_process_does_not_wait_for_the_others(
    gpus: bool, chosen: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL lets go of a group only when all leave it; the others may wait for this process in the middle of a step."""
    left: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(processes, "_meet", lambda backend, poll, say: None)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: left.append("in order"))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # restored afterwards
    place = Place(world_size=2, address="127.0.0.1", port=1)
    with pytest.raises(ResourceError), joined(place):
        raise ResourceError("out of memory")
    assert left == ([] if gpus else ["in order"])
    with joined(place):
        pass
    assert left[-1:] == ["in order"]


def test_what_a_library_says_while_processes_meet_is_no_result(capfd: pytest.CaptureFixture[str]) -> None:
    with stdout_kept_clean():
        os.write(1, b"[Gloo] Rank 0 is connected\n")
    os.write(1, b"{}\n")
    assert capfd.readouterr() == ("{}\n", "[Gloo] Rank 0 is connected\n")


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("NCCL error in: NCCLUtils.cpp:94, invalid usage\nLast error:\nDuplicate GPU detected", False),
        ("NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'", False),
        ("NCCL error: remote process exited or there was a network error", True),
    ],
)
def test_not_every_error_of_nccl_is_a_lost_process(text: str, lost: bool) -> None:
    with (
        pytest.raises(ResourceError if lost else torch.distributed.DistBackendError),
        peers_watched(Place(world_size=2)),
    ):
        raise torch.distributed.DistBackendError(text)


@pytest.mark.parametrize(
    ("text", "out"),
    [
        ("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)", True),
        ("CUDA error: device-side assert triggered", False),
    ],
)
def test_the_words_of_a_gpu_without_memory(text: str, out: bool) -> None:
    assert is_out_of_memory(RuntimeError(text)) == out


def test_a_gpu_that_only_emulates_bfloat16_is_told_of_float16(
    capsule_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no such GPU here, so torch's answers about one are simulated."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert reduced_precision(torch.device("cuda")) == "float16"
    assert reduced_precision(torch.device("cpu")) == "bfloat16"
    monkeypatch.setattr(trm_core.prepare, "reduced_precision", lambda device: reduced_precision(torch.device("cuda")))
    for precision, told in (("bfloat16", True), ("float16", False)):
        config = tiny.make_config(data={"path": str(capsule_file)}, training={"precision": precision})
        assert any("training.precision=float16" in note for note in prepare(config, RunHooks()).notes) == told


def test_muon_iterates_in_bfloat16_only_where_that_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    for kind in ("Muon", "Float32Muon"):
        monkeypatch.setattr(muon, kind, lambda params, kind=kind, **settings: chosen.append(kind))
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda"))
    for has_arithmetic in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_arithmetic: has)
        _, reason = muon.muon([on_gpu])
    assert chosen == ["Muon", "Float32Muon"]
    assert reason == "Muon with its iteration in float32: this GPU only emulates bfloat16"
