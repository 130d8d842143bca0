"""Accumulation of metrics between two log lines, as (sum, weight) pairs.

The training loop adds sums and weights; nothing is ever a mean of means. Values leave the device once per log line.
What the names mean: `trm_core.training.metric_registry`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trm_core.distributed.collectives import json_of_each_rank


class Averages:
    """Weighted means of named numbers since the last `take`."""

    def __init__(self) -> None:
        # Numbers that arrive together stay together: one pair of rows, sums and weights [2, n], for n names.
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def add(self, name: str, total: Tensor, weight: Tensor | float) -> None:
        """Add a sum over `weight` examples."""
        # A number of the host is filled in by a kernel: to copy it to a GPU would wait for all that the GPU has to do.
        weight = weight.double() if isinstance(weight, Tensor) else total.new_full((), weight, dtype=torch.float64)
        pair = torch.stack([total.detach().double(), weight])
        self._add((name,), pair[:, None])

    def add_mean(self, name: str, values: Tensor) -> None:
        """Add every element of `values`."""
        self.add(name, values.detach().double().sum(), float(values.numel()))

    def add_vector(self, names: tuple[str, ...], values: Tensor) -> None:
        """Add one example of each of `names`: `values` [len(names)]. Costs as much as one name."""
        assert values.shape == (len(names),), f"{len(names)} names for values of shape {tuple(values.shape)}"
        row = values.detach().double()
        self._add(names, torch.stack([row, torch.ones_like(row)]))

    def _add(self, names: tuple[str, ...], pair: Tensor) -> None:
        self._sums[names] = self._sums[names] + pair if names in self._sums else pair

    def take(self) -> dict[str, float]:
        """The means over the examples of all ranks, and start anew. Names that saw no example are left out."""
        if not self._sums:
            return {}
        # Losses lie on the device and times in host memory: one copy from each place.
        places: dict[torch.device, dict[tuple[str, ...], Tensor]] = {}
        for key, pair in self._sums.items():
            places.setdefault(pair.device, {})[key] = pair
        names = [name for pairs in places.values() for key in pairs for name in key]
        assert len(set(names)) == len(names), f"a name was added both alone and in a vector: {sorted(names)}"
        copies = [torch.cat(list(pairs.values()), 1).cpu() for pairs in places.values()]
        sums, weights = torch.cat(copies, 1).tolist()
        self._sums = {}
        mine = {name: pair for name, *pair in zip(names, sums, weights, strict=True)}
        totals: dict[str, tuple[float, float]] = {}
        for pairs in json_of_each_rank(mine):  # a rank may lack names that others have
            for name, (total, weight) in pairs.items():
                before = totals.get(name, (0.0, 0.0))
                totals[name] = (before[0] + total, before[1] + weight)
        return {name: total / weight for name, (total, weight) in totals.items() if weight > 0}
