"""Exponential moving average of the weights: the weights that are evaluated and exported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights of the model, with a shorter memory at first so that the
    initial weights are forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.updates = 0
        self.weights = dict(model.named_parameters())  # looked up once: a small model's steps are short
        self.average = {name: p.detach().clone() for name, p in self.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 10))
        torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), 1 - decay)

    def beside(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The averages of these parameters of the model, in the same order."""
        names = {id(p): name for name, p in self.weights.items()}
        return [self.average[names[id(weight)]] for weight in weights]

    def by_every_name(self) -> dict[str, Tensor]:
        """The averages under every name that the model's `state_dict` has for them: tied networks have two."""
        first = {id(p): name for name, p in self.weights.items()}
        return {name: self.average[first[id(p)]] for name, p in self.model.named_parameters(remove_duplicate=False)}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside the context, and its own again afterwards."""
        own = {name: p.detach().clone() for name, p in self.weights.items()}
        self.take_over()
        try:
            yield
        finally:
            self._put(own)

    def take_over(self) -> None:
        """Make the averaged weights the model's own."""
        self._put(self.average)

    @torch.no_grad()
    def _put(self, source: dict[str, Tensor]) -> None:
        for name, p in self.weights.items():
            p.copy_(source[name])
