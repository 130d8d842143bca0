"""What takes the memory: bytes of a training state's tensors by owner, and what the machine has available."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from trm_core.model.carry import tensors_of
from trm_core.training.state import TrainingState

_LIBRARIES = 200_000_000  # address space for libraries that are loaded only when needed: scipy, matplotlib
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def bytes_by_owner(state: TrainingState) -> dict[str, int]:
    """Bytes that the tensors of `state` hold now, including those on the host. What two owners share counts once, for
    the first. Buffers count as parameters, except those of the memory bank.
    """
    model, replay = state.model, state.replay
    learned: list[nn.Module] = [model, *([] if state.curiosity is None else [state.curiosity])]
    parameters = [parameter for module in learned for parameter in module.parameters()]
    bank = [] if model.memory is None else list(model.memory.buffers())
    owners: dict[str, Iterable[Tensor]] = {
        "memory bank": bank,
        "parameters": [*parameters, *(buffer for module in learned for buffer in module.buffers())],
        "gradients": [parameter.grad for parameter in parameters if parameter.grad is not None],
        "optimiser state": [
            value
            for optimizer in state.optimizers.all
            for values in optimizer.state.values()
            for value in values.values()
            if isinstance(value, Tensor)
        ],
        "average": [] if state.average is None else state.average.average.values(),
        "target network": [] if state.target is None else state.target.head.parameters(),
        "carry": tensors_of(state.carry).values(),
    }
    counted: set[int] = set()
    sizes = {owner: sum(_new_bytes(tensor, counted) for tensor in tensors) for owner, tensors in owners.items()}
    return sizes | {"replay": 0 if replay is None else replay.nbytes}


def _new_bytes(tensor: Tensor, counted: set[int]) -> int:
    """Bytes of the tensor's storage, unless it was counted already: a view keeps the whole storage alive."""
    storage = tensor.untyped_storage()
    if storage.data_ptr() in counted:
        return 0
    counted.add(storage.data_ptr())
    return storage.nbytes()


def available_memory(device: torch.device, held: int) -> tuple[int, str]:
    """Bytes that tensors may take in total, given that they hold `held` now, and what sets this limit."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        share = int(total * torch.cuda.get_per_process_memory_fraction(device))
        return min((free + reserved, "on the GPU, beside other processes"), (share, "of the GPU for this process"))
    sizes = _process_sizes()
    limits = [(_free_memory() + held, "of free memory")]
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        limits.append((address_space - sizes["VmSize"] - _LIBRARIES + held, "of the limit on address space"))
    for name in _CGROUP_LIMITS:
        text = _read(name)
        if text.strip().isdecimal():  # "max": no limit
            limits.append((int(text) - sizes["VmRSS"] + held, "of the control group's limit"))
    size, reason = min(limits)
    return max(size, 0), reason


def _process_sizes() -> dict[str, int]:
    """Virtual and resident size of this process; 0 where /proc does not say."""
    return {"VmSize": 0, "VmRSS": 0} | _kilobytes("/proc/self/status")


def _free_memory() -> int:
    """What new allocations can get without swapping; if /proc does not say, all of the memory."""
    return _kilobytes("/proc/meminfo").get("MemAvailable", physical_memory())


def physical_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _kilobytes(path: str) -> dict[str, int]:
    """The lines 'Name: 123 kB' of a file under /proc, in bytes."""
    lines = (line.split() for line in _read(path).splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[2:] == ["kB"]}


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
