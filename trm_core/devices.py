"""Which device to compute on, and how values leave it."""

from __future__ import annotations

import torch
from torch import Tensor

from trm_core.distributed.place import by_torchrun
from trm_core.errors import ConfigError


def reduced_precision(device: torch.device) -> str:
    """The reduced `training.precision` that is fast on this device: GPUs before Ampere only emulate bfloat16."""
    emulated = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return "float16" if emulated else "bfloat16"


def on_host(*tensors: Tensor) -> list[Tensor]:
    """The same bools, integers below 2^53 and floats in host memory. One copy brings them all from a GPU, because each
    would wait until everything queued before it is done.
    """
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return list(tensors)
    together = torch.cat([tensor.detach().flatten().double() for tensor in tensors]).cpu()
    parts = together.split([tensor.numel() for tensor in tensors])
    return [part.to(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def pick_device(asked: str, local_rank: int = 0) -> tuple[torch.device, str]:
    """The device for `training.device`, and why it was chosen; a GPU becomes the current one. With several processes,
    each takes a GPU of its own. Raises ConfigError for a device that cannot be used here or that another process has.
    """
    if local_rank and asked.startswith("cuda:"):
        raise ConfigError(
            f"device '{asked}' is a single GPU, but there are several processes",
            hint="training.device=cuda gives each process its own GPU",
        )
    # All of torchrun's processes see the same GPUs; srun may have given each process its own, which each calls cuda:0.
    if asked in ("auto", "cuda") and torch.cuda.is_available() and by_torchrun():
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise ConfigError(
                f"local process {local_rank} has no GPU of its own: this machine has {count}",
                hint=f"--nproc {count}, or training.device=cpu",
            )
    why = "set by the config"
    if asked == "auto":
        asked, why = ("cuda", "a GPU is available") if torch.cuda.is_available() else ("cpu", "no GPU is available")
    if asked == "cuda" and torch.cuda.is_available():
        asked = f"cuda:{local_rank % torch.cuda.device_count()}"
    try:
        device = torch.device(asked)
        # This build of torch may have no kernels for the GPU, or another process may have it for itself. Sums of
        # metrics and prices are kept in double precision, which Apple's mps does not have.
        torch.zeros(1, device=device, dtype=torch.float64)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device '{asked}' cannot be used: {reason}",
            hint="training.device=cpu" if why != "set by the config" else "training.device=auto or cpu",
        ) from error
    if device.type == "cuda":
        # What is not told a device (kernels of other packages, questions about "the" GPU) takes the current one.
        torch.cuda.set_device(device)
    return device, f"device {asked}: {why}"
