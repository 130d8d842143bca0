"""Learning rate over steps: linear warm-up, then a cosine down to a share of the peak (pipeline.md 6.1)."""

from __future__ import annotations

import math


def lr_factor(step: int, warmup_steps: int, total_steps: int, min_ratio: float) -> float:
    """Learning rate at a step over its peak. step counts from 0; the first already moves (1 / warmup_steps)."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
