"""Gradient statistics of one step (pipeline.md 5.4): norms by module group and over all, zeros, NaN and Inf.

Called after backward (and, if the loss is scaled, after its factor was divided out of the gradients) and before
clipping, which needs the same norms, so nothing is computed twice:

    stats = monitor.measure()
    for params, total, limit in zip(parts, stats.totals, limits, strict=True):
        torch.nn.utils.clip_grads_with_norm_(params, limit, total)
    averages.add_vector(stats.names, stats.values)

Nothing is copied from the device here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Parts of the model whose submodules learn from different losses, or are deep enough to be shown separately.
SPLIT = ("recursion", "q_head")
OVERALL = ("mean_norm", "max_norm", "min_norm", "num_zero", "num_nan", "num_inf", "mean", "std")
PREFIX = "train/grad/"


def group_of(name: str) -> str:
    """The one group of a parameter, from its dotted name.

    The first component (`embedding`, `answer`, `cmi_head`, `memory`, ...); under `recursion` and `q_head` also the
    second (`q_head.value_net`), and the number of the block, if there is one (`recursion.low.0`). A parameter of the
    model itself is a group of its own.
    """
    modules = name.split(".")[:-1] or [name]
    if modules[0] not in SPLIT:
        return modules[0]
    block = [part for part in modules[2:] if part.isdecimal()][:1]
    return ".".join(modules[:2] + block)


@dataclass(frozen=True)
class GradientStats:
    """`values` [len(names)] float32 on the model's device; `totals`: the norm of each part, as clipping needs it."""

    names: tuple[str, ...]
    values: Tensor
    totals: tuple[Tensor, ...]

    def as_dict(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.values.unbind(), strict=True))


class GradientMonitor:
    """Measures a model on its final device. `parts`: groups of parameters that are clipped together, by default all in
    one; what is in no part does not learn and is not measured.

    Below, a "parameter" is one tensor, and a gradient that is None counts as zero. Norms are taken in float32: a norm
    past its range counts as Inf, and a parameter with both NaN and Inf as NaN.
    """

    def __init__(self, model: nn.Module, parts: Sequence[Iterable[nn.Parameter]] | None = None) -> None:
        chosen = [list(model.parameters())] if parts is None else [list(part) for part in parts]
        learning = {id(parameter) for part in chosen for parameter in part}
        named = {name: parameter for name, parameter in model.named_parameters() if id(parameter) in learning}
        assert named, "a model without parameters has no gradients"
        self.parameters = list(named.values())
        self.elements = sum(parameter.numel() for parameter in self.parameters)
        place = {id(parameter): index for index, parameter in enumerate(self.parameters)}
        self.parts = [[place[id(parameter)] for parameter in part] for part in chosen]
        self.groups: dict[str, list[str]] = {}
        for name in named:
            self.groups.setdefault(group_of(name), []).append(name)
        self.names = tuple(PREFIX + name for name in OVERALL) + tuple(f"{PREFIX}layer_{group}" for group in self.groups)
        # Row g lists the places of group g, padded with the place past the end, where `measure` puts a zero. Gathering
        # and summing rows gives the same bits every time, which index_add_ on a GPU does not.
        numbers = {name: index for index, name in enumerate(named)}
        rows = [[numbers[name] for name in members] for members in self.groups.values()]
        width = max(len(row) for row in rows)
        padded = [row + [len(named)] * (width - len(row)) for row in rows]
        self.places = torch.tensor(padded, device=self.parameters[0].device)

    @torch.no_grad()
    def measure(self) -> GradientStats:
        """Statistics of the gradients as they are now."""
        zero = torch.zeros((), device=self.places.device)
        grads = [parameter.grad for parameter in self.parameters]
        present = [grad for grad in grads if grad is not None]
        found = iter(torch._foreach_norm(present, 2, dtype=torch.float32) if present else [])
        each = [zero if grad is None else next(found) for grad in grads]
        norms = torch.stack(each)
        squares = norms.square()
        mean = (torch.stack([grad.sum(dtype=torch.float32) for grad in present]).sum() if present else zero) / (
            self.elements
        )
        overall = torch.stack(
            [
                norms.mean(),
                norms.max(),
                norms.min(),
                (norms == 0).sum().float(),
                norms.isnan().sum().float(),
                norms.isinf().sum().float(),
                mean,
                (squares.sum() / self.elements - mean.square()).clamp(min=0).sqrt(),
            ]
        )
        by_group = torch.cat([squares, zero[None]])[self.places].sum(1).sqrt()
        return GradientStats(self.names, torch.cat([overall, by_group]), self.totals(grads, each))

    def totals(self, grads: list[Tensor | None], norms: list[Tensor]) -> tuple[Tensor, ...]:
        """The norm of each part, by the same operations as `clip_grad_norm_`, so that clipping stays bit-identical."""
        found = ([norms[place] for place in part if grads[place] is not None] for part in self.parts)
        return tuple(
            torch.linalg.vector_norm(torch.stack(part)) if part else torch.zeros((), device=self.places.device)
            for part in found
        )
