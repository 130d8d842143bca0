"""Bytes that the forward and backward of one step take, from shapes alone.

The real loss runs on fake tensors, which have shapes, dtypes and storages without memory. So every operation of
training is counted, whatever is switched on, and nothing is computed. What the trace cannot run (putting new samples
into rows, the optimiser) is counted from shapes in `trm_core.training.estimate`.
"""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trm_core.config.schema import ArchConfig, Config
from trm_core.data.batch import CapsuleBatch
from trm_core.data.fields import IGNORE_LABEL
from trm_core.dqn.curiosity import Curiosity
from trm_core.dqn.learner import ReplayedTargets
from trm_core.losses import StepLoss
from trm_core.model.carry import Carry, tensors_of
from trm_core.model.data_shape import DataShape
from trm_core.model.elementwise import as_on
from trm_core.model.shapes_only import shapes_only
from trm_core.model.trm import TinyRecursiveModel
from trm_core.optim.freeze import freeze
from trm_core.training.episodes import Episodes


@dataclass(frozen=True)
class Traced:
    """Bytes. When the trace begins, the model, the carry and one part of the batch exist; the peak leaves them out."""

    carry: int
    renewed: int  # the part of the carry that is reallocated when new samples come into its rows
    batch: int  # a batch of new samples for all rows
    replayed: int  # the transitions that are learned from, with their next states
    peak: int  # of the whole forward and backward
    gradients_at_peak: int  # the part of the peak that is gradients
    results: int  # what the forward leaves behind that is needed until the step ends


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are allocated inside the context, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.gradients = self.gradients_at_peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.see(leaf)
        return result

    def see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.seen:
            return
        size = storage.nbytes()
        self.seen.add(key)
        self.live += size
        if self.live > self.peak:
            self.peak, self.gradients_at_peak = self.live, self.gradients
        weakref.finalize(storage, self.gone, key, size)

    def gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size

    def ignore(self, tensor: Tensor) -> None:
        """Do not count its storage, which existed before."""
        self.seen.add(tensor.untyped_storage()._cdata)

    def gradient_is_there(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.gradients += parameter.grad.nbytes


def trace(
    config: Config, shape: DataShape, dqn: bool, cmi: bool, curiosity: bool, rows: int, device: str = "cpu"
) -> Traced:
    """Trace one part of `rows` rows, or several (`training.accumulation_steps`) of that size. device: its type; what
    the kernels of a GPU need besides their results is not known.
    """
    # The size of batch and buffer, and a number of parts beyond two, change nothing: one trace serves all of them.
    parts = min(config.training.accumulation_steps, 2)
    training = config.training.model_copy(update={"global_batch_size": parts, "accumulation_steps": parts})
    replay = config.dqn.model_copy(update={"buffer_capacity": 1, "buffer_min_size": 1})
    same = config.model_copy(update={"training": training, "dqn": replay, "arch": _shortened(config)})
    return _trace(same.model_dump_json(), shape, dqn, cmi, curiosity, rows, device)


def _shortened(config: Config) -> ArchConfig:
    """With at most one cycle without gradient, as these leave nothing behind, unless rows may leave after each one."""
    arch = config.arch
    if arch.enable_adaptive_hcycles:
        return arch
    return arch.model_copy(update={"H_cycles": min(arch.H_cycles, arch.grad_cycles + 1)})


@functools.lru_cache(maxsize=256)
def _trace(text: str, shape: DataShape, dqn: bool, cmi: bool, curiosity: bool, rows: int, device: str) -> Traced:
    config = Config.model_validate_json(text)
    with shapes_only():  # initialisation reads values, which fake tensors do not allow
        model = TinyRecursiveModel(config, shape, with_cmi=cmi).train()
        states = model.q_head.state_width
        unseen = Curiosity(config.dqn, states - model.q_head.recurrent_width) if curiosity else None
    model.q_head.value_net.requires_grad_(dqn)
    freeze(model, config.training.freeze)
    everything: list[nn.Module] = [model, *([] if unseen is None else [unseen])]
    with FakeTensorMode(allow_non_fake_inputs=True), as_on(device):
        for module in everything:
            module.to_empty(device="cpu")
        batch = batch_of(shape, rows)
        carry = Episodes(model, config, torch.ones(shape.num_capsules), None).initial_carry(batch)
        replayed = transitions_of(config, states) if dqn else None
        loss = StepLoss(model, config, unseen)
        live = LiveBytes()
        for module in everything:
            for tensor in [*module.parameters(), *module.buffers()]:
                live.ignore(tensor)
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(live.gradient_is_there)
        for tensor in [*tensors_of(carry).values(), *([] if replayed is None else vars(replayed).values())]:
            live.ignore(tensor)
        parts = config.training.accumulation_steps  # at most two: the second starts with the gradients of the first
        results = []
        with live:
            for number in range(1, parts + 1):
                brought = replayed
                if replayed is not None and number < parts:
                    brought = replayed.without_rows()
                results.append(loss(carry, brought, 0))
                results[-1].loss.backward()
            left = (live.live - live.gradients // parts) // parts
        replayed_bytes = 0 if replayed is None else sum(value.nbytes for value in vars(replayed).values())
        return Traced(
            carry=carry_bytes(carry),
            renewed=renewed_bytes(carry),
            batch=sum(value.nbytes for value in vars(batch).values() if value is not None),
            # They are drawn together with their next states.
            replayed=replayed_bytes + (0 if replayed is None else replayed.state.nbytes),
            peak=live.peak,
            gradients_at_peak=min(live.gradients_at_peak, live.gradients // parts),
            results=left,
        )


def batch_of(shape: DataShape, rows: int) -> CapsuleBatch:
    """A batch of these shapes."""
    k = shape.num_capsules
    labels = (rows,) if shape.label_rank == 1 else (rows, k)
    if shape.tokens:
        numbers = torch.zeros(rows, dtype=torch.int64)
        tokens = torch.zeros(rows, k, dtype=torch.int64)
        return CapsuleBatch(tokens, None, None, tokens, None, None, None, numbers, numbers)
    return CapsuleBatch(
        sketches=torch.empty(rows, k, shape.dim),
        children=torch.empty(rows, k, shape.num_children, shape.dim) if shape.num_children else None,
        checksums=torch.empty(rows, k, shape.checksum_dim) if shape.checksum_dim else None,
        labels=torch.full(labels, IGNORE_LABEL),
        parents=torch.full((rows, k), -1) if shape.has_parents else None,
        mask=None,
        modality=None,
        rows=torch.arange(rows),
    )


def transitions_of(config: Config, state_width: int) -> ReplayedTargets:
    """As many transitions as a step learns from."""
    dqn = config.dqn
    rows = (dqn.batch_size,) if dqn.sequence_length == 1 else (dqn.batch_size, dqn.sequence_length)
    numbers = torch.zeros(rows, dtype=torch.int64)
    return ReplayedTargets(numbers, torch.zeros(*rows, state_width), numbers, torch.zeros(rows), torch.zeros(rows))


def carry_bytes(carry: Carry) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(carry).values())


def renewed_bytes(carry: Carry) -> int:
    """What `Episodes.begin` reallocates; it passes the rest on."""
    handed_on = ("x", "q_state", "utility", "accuracy", "loss", "capsules.prices", "pending.action", "pending.cost")
    return sum(tensor.nbytes for name, tensor in tensors_of(carry).items() if name not in handed_on)
