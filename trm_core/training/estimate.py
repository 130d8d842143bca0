"""What a run will need, before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from trm_core.config.schema import Config
from trm_core.distributed.collectives import world_size
from trm_core.model.embedding import DataShape
from trm_core.model.trm import TinyRecursiveModel

_FLOAT = 4
_REPLAY_COLUMNS = 64  # bytes of a transition besides its state


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of tensors by owner."""

    parameters: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    carry: int
    replay: int
    memory_bank: int
    snapshot: int  # the copy that a save is written from, where it lies in the same memory

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in self.__dataclass_fields__)


def estimate_memory(
    config: Config, shape: DataShape, model: TinyRecursiveModel, dqn: bool, device: str = "cpu"
) -> MemoryEstimate:
    """Counted from shapes, for one of the processes that train together. Activations: what backward keeps of every
    block application that carries gradient, for the rows that are computed at a time.
    """
    arch, rows = config.arch, config.training.global_batch_size // world_size()
    parameters = sum(p.numel() for p in model.parameters()) * _FLOAT
    positions = rows * shape.num_capsules
    hidden = arch.hidden_size
    ffn = -(-round(arch.ffn_expansion * hidden * 2 / 3) // 32) * 32
    # Kept per position and block: input, qkv, attention output, two sums, two norms; gate, up, silu, product.
    per_block = 9 * hidden + 5 * ffn
    applications = arch.grad_cycles * (arch.L_cycles + 1) * arch.num_layers
    children = shape.num_children * shape.dim
    carry = positions * (3 * hidden + shape.dim + children + shape.checksum_dim) * _FLOAT
    number = 2 if config.dqn.buffer_dtype == "float16" else _FLOAT
    replay = config.dqn.buffer_capacity * (model.q_head.state_width * number + _REPLAY_COLUMNS) if dqn else 0
    average = parameters if config.training.ema_decay is not None else 0
    return MemoryEstimate(
        parameters=parameters,
        gradients=parameters,
        optimizer=2 * parameters,
        average=average,
        activations=positions * per_block * applications * _FLOAT // config.training.accumulation_steps,
        carry=carry,
        replay=replay,
        memory_bank=0 if model.memory is None else sum(buffer.nbytes for buffer in model.memory.buffers()),
        snapshot=3 * parameters + average + carry + replay if device == "cpu" else 0,
    )
