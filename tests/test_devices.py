"""Which device is chosen, and the errors for devices that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import trm_core.prepare
from trm_core.devices import pick_device, reduced_precision
from trm_core.distributed.place import Place
from trm_core.distributed.processes import peers_watched
from trm_core.errors import ConfigError, ResourceError, is_out_of_memory
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


def test_one_gpu_is_not_given_to_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL would refuse it with an obscure error. Processes of srun that each see one GPU are fine."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("auto", 1)[0] == torch.device("cuda", 0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert pick_device("auto", 0)[0] == torch.device("cuda", 0)
    with pytest.raises(ConfigError, match="local process 1 has no GPU of its own: this machine has 1") as told:
        pick_device("auto", 1)
    assert told.value.hint is not None
    assert "--nproc 1" in told.value.hint
    with pytest.raises(ConfigError, match="'cuda:0' is a single GPU, but there are several processes"):
        pick_device("cuda:0", 1)


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
