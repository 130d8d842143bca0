"""Sign-SGD for the puzzle embeddings: a step changes the rows that it read, and no others.

    row <- (1 - lr * decay) * row - lr * sign(sum of the row's gradients over all examples and processes)

as in the public code of HRM (arXiv 2506.21734). A row gets a gradient so rarely that an optimiser with moments would
move it by the sign as well. Only the sign counts, so it does not matter whether gradients are summed or averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trm_core.distributed.collectives import all_rows, all_sum
from trm_core.model.token_embedding import PuzzleEmbedding


class SparseSignSGD:
    """Keeps nothing from step to step. `factor`: the schedule's current share of the peak rate."""

    def __init__(self, embedding: PuzzleEmbedding, lr: float, weight_decay: float) -> None:
        self.embedding, self.lr, self.weight_decay = embedding, lr, weight_decay
        self.factor = 1.0

    @torch.no_grad()
    def step(self) -> None:
        """Update the rows that were read. Every process calls it, with the rows of its own examples."""
        weights = self.embedding.weights
        used = [(identifiers, rows.grad) for identifiers, rows in self.embedding.used if rows.grad is not None]
        identifiers = torch.cat([weights.new_zeros(0, dtype=torch.int64), *(some for some, _ in used)])
        gradients = torch.cat([weights.new_zeros(0, weights.shape[1]), *(some for _, some in used)])
        identifiers, gradients = all_rows(identifiers), all_rows(gradients)
        if len(identifiers) == 0 or self.lr == 0:
            return
        where = equal_ones(identifiers)
        # Every process adds up the rows of all processes, on a GPU in no fixed order. In double precision a sum near 0
        # has the same sign everywhere; in float32 one in some billion does not, and the tables would differ for good.
        total = weights.new_zeros(gradients.shape, dtype=torch.float64)
        total.index_add_(0, where, gradients.double())
        lr = self.lr * self.factor
        # Where an identifier occurs several times, the same new row is written several times.
        moved = lr * total[where].sign().to(weights.dtype)
        weights[identifiers] = weights[identifiers] * (1.0 - lr * self.weight_decay) - moved

    def all_finite(self) -> bool:
        """Whether the gradients of all processes are finite. Every process calls it."""
        grads = [rows.grad for _, rows in self.embedding.used if rows.grad is not None]
        wrong = sum((~grad.isfinite()).sum() for grad in grads)
        return not bool(all_sum(torch.as_tensor(wrong, dtype=torch.float32, device=self.embedding.weights.device)))

    def forget(self) -> None:
        """Drop what was read, with its gradients: after a step, or instead of one."""
        self.embedding.used.clear()


def equal_ones(identifiers: Tensor) -> Tensor:
    """[n] numbers from 0 on, the same for equal identifiers [n], in their order. `unique` would wait for a GPU, because
    it has to know how many there are.
    """
    ordered, order = identifiers.sort(stable=True)
    numbers = torch.zeros_like(ordered)
    numbers[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    return torch.empty_like(numbers).scatter_(0, order, numbers)
