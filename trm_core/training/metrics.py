"""Accumulation of metrics between two log lines, as (sum, weight) pairs.

The training loop adds sums and weights; nothing is ever a mean of means. Values leave the device once per log line.
What the names mean: `trm_core.training.metric_registry`.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from trm_core.distributed.collectives import json_of_each_rank

_SUM, _WEIGHT = 0, 1
_Half = tuple[str, int]  # of a name's pair


def summed(values: Tensor) -> tuple[Tensor, float]:
    """The sum [] of all elements, and how many there are."""
    return values.detach().double().sum() if values.dim() else values, float(values.numel())


class Averages:
    """Weighted means of named numbers since the last `take`."""

    def __init__(self) -> None:
        self._new: list[tuple[_Half, Tensor]] = []  # of this step
        self._start()

    def _start(self) -> None:
        # Numbers that arrive together stay together, as one vector on their device.
        self._sums: dict[tuple[torch.device, tuple[_Half, ...]], Tensor] = {}
        # Numbers on the host stay there: copying one to a GPU would wait for all of its queued work.
        self._host_weights: defaultdict[str, float] = defaultdict(float)

    def add(self, name: str, total: Tensor, weight: Tensor | float) -> None:
        """Add a sum [] over `weight` examples. Neither may change before the step is settled."""
        self._new.append(((name, _SUM), total.detach()))
        if isinstance(weight, Tensor):
            self._new.append(((name, _WEIGHT), weight))
        else:
            self._host_weights[name] += weight

    def add_mean(self, name: str, values: Tensor) -> None:
        """Add every element of `values` as one example."""
        self.add(name, *summed(values))

    def add_vector(self, names: tuple[str, ...], values: Tensor) -> None:
        """Add one example of each of `names`: `values` [len(names)]. Costs as much as one name."""
        assert values.shape == (len(names),), f"{len(names)} names for values of shape {tuple(values.shape)}"
        self._add(tuple((name, _SUM) for name in names), values.detach())
        for name in names:
            self._host_weights[name] += 1.0

    def settle(self) -> None:
        """Bring the numbers of a step together, so that a few operations serve all of them instead of a few for each of
        a hundred. (One stack of mixed dtypes takes six times as long as a stack per dtype.)
        """
        alike: dict[tuple[torch.device, torch.dtype], tuple[list[_Half], list[Tensor]]] = {}
        for half, number in self._new:
            halves, numbers = alike.setdefault((number.device, number.dtype), ([], []))
            halves.append(half)
            numbers.append(number)
        self._new = []
        for halves, numbers in alike.values():
            self._add(tuple(halves), torch.stack(numbers))

    def _add(self, halves: tuple[_Half, ...], numbers: Tensor) -> None:
        key, row = (numbers.device, halves), numbers.double()
        self._sums[key] = self._sums[key] + row if key in self._sums else row

    def take(self) -> dict[str, float]:
        """The means over the examples of all ranks; then start over. Names that saw no example are left out."""
        self.settle()
        mine = {name: [0.0, weight] for name, weight in self._host_weights.items()}
        # Losses are on the device, times in host memory: one copy from each.
        for place in {device for device, _ in self._sums}:
            vectors = {halves: row for (device, halves), row in self._sums.items() if device == place}
            halves = [half for together in vectors for half in together]
            for (name, half), number in zip(halves, torch.cat(list(vectors.values())).tolist(), strict=True):
                mine.setdefault(name, [0.0, 0.0])[half] += number
        self._start()
        totals: dict[str, tuple[float, float]] = {}
        for pairs in json_of_each_rank(mine):  # a rank may lack names that others have
            for name, (total, weight) in pairs.items():
                before = totals.get(name, (0.0, 0.0))
                totals[name] = (before[0] + total, before[1] + weight)
        return {name: total / weight for name, (total, weight) in totals.items() if weight > 0}
