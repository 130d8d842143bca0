"""Exponential moving average of the weights, which is what gets evaluated and exported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights, with a shorter memory at first so that the start is
    forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 10))
        weights = [p.detach() for _, p in model.named_parameters()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    def beside(self, model: nn.Module, weights: Sequence[Tensor]) -> list[Tensor]:
        """The averages of these parameters of the model."""
        names = {id(p): name for name, p in model.named_parameters()}
        return [self.average[names[id(weight)]] for weight in weights]

    def by_every_name(self, model: nn.Module) -> dict[str, Tensor]:
        """The averages by all names that the model's `state_dict` has for them: tied networks have two."""
        first = {id(p): name for name, p in model.named_parameters()}
        return {name: self.average[first[id(p)]] for name, p in model.named_parameters(remove_duplicate=False)}

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """The model carries the averaged weights inside the context, its own again after."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.copy_to(model)
        try:
            yield
        finally:
            _copy(own, model)

    def copy_to(self, model: nn.Module) -> None:
        """Make the averaged weights the model's own."""
        _copy(self.average, model)


@torch.no_grad()
def _copy(source: dict[str, Tensor], model: nn.Module) -> None:
    for name, p in model.named_parameters():
        p.copy_(source[name])
