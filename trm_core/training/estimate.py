"""What a run will need, before anything is allocated: bytes of tensors by owner, from shapes alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from trm_core.config.schema import Config
from trm_core.distributed.collectives import world_size
from trm_core.dqn.curiosity import Curiosity
from trm_core.model.shapes_only import shapes_only
from trm_core.model.trm import TinyRecursiveModel
from trm_core.optim.build import build_optimizers
from trm_core.optim.freeze import freeze
from trm_core.training.features import Features
from trm_core.training.traced_memory import Traced, trace

_FLOAT = 4
# Bytes of a transition besides its state and its mask: outcome, completeness, age, and two trees of sums.
_REPLAY_COLUMNS = 24 + 1 + 8 + 2 * 8
_ANCHOR = 4  # memory is traced at batch sizes that are powers of this, and interpolated linearly between them
# Copies of its parameters that an optimiser makes in a step; with muon, AdamW takes the remaining parameters.
_COPIES = {"adamatan2": 2, "adamw": 1, "muon": 1}
_MUON_COPIES = 3


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of tensors by owner, at the moment of a training step that needs most (`step_peak`), and during a save."""

    parameters: int  # with buffers
    gradients: int  # those that exist at that moment
    optimizer: int
    average: int
    target: int
    activations: int  # and everything else that is temporary in a step: batch, transitions, copies of an update
    carry: int
    replay: int
    memory_bank: int
    snapshot: int  # the copy that a save is written from, if it is in the same memory

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def step_peak(self) -> int:
        """The total without the copy of a save."""
        return self.total - self.snapshot


@dataclass(frozen=True)
class Peak:
    """The most that a step holds beyond what persists."""

    size: int
    gradients: int  # the part of `size` that is gradients


def estimate_memory(
    config: Config, features: Features, device: str = "cpu", ranks: int | None = None
) -> MemoryEstimate:
    """The estimate for one of `ranks` processes that train together (None: as many as there are now). config: resolved
    by `features.resolved`. Nothing is allocated: the model has shapes only.
    """
    rows, parts = config.training.global_batch_size // (ranks or world_size()), config.training.accumulation_steps
    model, curiosity = shapes_of(config, features)
    modules: list[nn.Module] = [model, *([] if curiosity is None else [curiosity])]
    learned = [parameter for module in modules for parameter in module.parameters()]
    bank = 0 if model.memory is None else size_of(model.memory.buffers())
    fixed = size_of(buffer for module in modules for buffer in module.buffers()) - bank
    traced = trace_at(config, features, max(rows // parts, 1), device)
    optimizers = build_optimizers(model, config, policy_modules=modules[1:]).all
    peak = largest_moment(config, traced, optimizers)
    number = 2 if config.dqn.buffer_dtype == "float16" else _FLOAT
    slot = model.q_head.state_width * number + model.q_head.num_actions + _REPLAY_COLUMNS
    found = MemoryEstimate(
        parameters=size_of(learned) + fixed,
        gradients=peak.gradients,
        optimizer=sum(moments(one) for one in optimizers),
        average=0 if config.training.ema_decay is None else size_of(model.parameters()),
        target=size_of(model.q_head.parameters()) if features.dqn else 0,
        activations=peak.size - peak.gradients,
        carry=traced.carry * parts,
        replay=config.dqn.buffer_capacity * slot if features.dqn else 0,
        memory_bank=bank,
        snapshot=0,
    )
    copied = found.total - found.gradients - found.activations
    return replace(found, snapshot=copied) if device == "cpu" else found


def shapes_of(config: Config, features: Features) -> tuple[TinyRecursiveModel, Curiosity | None]:
    """The modules that learn in a run, as shapes without memory."""
    with shapes_only():
        model = TinyRecursiveModel(config, features.shape, with_cmi=features.cmi)
        head = model.q_head
        curiosity = Curiosity(config.dqn, head.state_width - head.recurrent_width) if features.curiosity else None
    head.value_net.requires_grad_(features.dqn)
    freeze(model, config.training.freeze)
    return model, curiosity


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes."""
    return sum(tensor.nbytes for tensor in tensors)


def trace_at(config: Config, features: Features, rows: int, device: str) -> Traced:
    """The trace for `rows` rows, interpolated linearly between the powers of four around it. As memory grows convexly,
    this errs on the high side.
    """

    def at(number: int) -> Traced:
        return trace(config, features.shape, features.dqn, features.cmi, features.curiosity, number, device)

    low = 1
    while low * _ANCHOR <= rows:
        low *= _ANCHOR
    below = at(low)
    if low == rows:
        return below
    above, share = at(low * _ANCHOR), (rows - low) / (low * (_ANCHOR - 1))
    ends = ((getattr(below, field.name), getattr(above, field.name)) for field in fields(Traced))
    return Traced(*(round(a + share * (b - a)) for a, b in ends))


def largest_moment(config: Config, traced: Traced, optimizers: list[torch.optim.Optimizer]) -> Peak:
    """The larger of two moments: in forward and backward of the last part, or in the update, with every gradient.

    Both include the carry from before new samples came in, to which a step that is not finite goes back.
    """
    parts = config.training.accumulation_steps
    there = parts * (traced.renewed + traced.batch) + traced.replayed
    learning = Peak(there + (parts - 1) * traced.results + traced.peak, traced.gradients_at_peak)
    gradients = sum(size_of(learned_by(one)) for one in optimizers)
    # At steps that are logged, a copy of the weights before the update is held, and then their change.
    copies = gradients + max(gradients, *(update_copies(config, one) for one in optimizers))
    update = Peak(there + parts * traced.results + gradients + copies, gradients)
    return max(learning, update, key=lambda peak: peak.size)


def is_muon(optimizer: torch.optim.Optimizer) -> bool:
    return "momentum" in optimizer.defaults


def learned_by(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The optimiser's parameters that get a gradient."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def update_copies(config: Config, optimizer: torch.optim.Optimizer) -> int:
    """Bytes that an update briefly holds besides the gradients: copies of the parameters."""
    copies = _MUON_COPIES if is_muon(optimizer) else _COPIES[config.training.optimizer]
    return copies * size_of(learned_by(optimizer))


def moments(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimiser's state: one moment for Muon, else two and a step count."""
    parameters = learned_by(optimizer)
    return size_of(parameters) if is_muon(optimizer) else 2 * size_of(parameters) + _FLOAT * len(parameters)
