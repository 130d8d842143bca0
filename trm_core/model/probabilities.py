"""How logits become probabilities, in one place for the loss, the policy's state and every answer.

`stablemax` (Prieto et al., 2025, arXiv 2501.04697, section 5) replaces exp(x) by s(x) = x + 1 for x >= 0 and
1 / (1 - x) for x < 0. The logarithm of s is log1p(x) or -log1p(-x), which needs neither a small constant nor float64.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Probabilities = Literal["softmax", "stablemax"]


def log_probabilities(logits: Tensor, kind: Probabilities) -> Tensor:
    """[.., V] float32 of logits [.., V]."""
    logits = logits.float()
    if kind == "softmax":
        return logits.log_softmax(-1)
    # Not by abs or clamp: at 0, where many heads start, these have no gradient, or one that depends on torch's version.
    negative = logits < 0
    size = torch.where(negative, -logits, logits).log1p()
    scores = torch.where(negative, -size, size)
    # s(x) of a large negative logit is small but does not vanish, so the sum is never 0.
    return scores - torch.logsumexp(scores, -1, keepdim=True)
