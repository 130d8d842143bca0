"""Whether given parent ids are valid: indices of capsules, or -1, without cycles."""

from __future__ import annotations

import numpy as np


def is_forest(parents: np.ndarray) -> bool:
    """True if every capsule of one sample [k] reaches a root (-1)."""
    k = len(parents)
    if ((parents < -1) | (parents >= k)).any():
        return False
    at = parents
    for _ in range(k):  # no path without a cycle is longer
        if (at == -1).all():
            return True
        at = np.where(at >= 0, parents[np.maximum(at, 0)], -1)
    return bool((at == -1).all())
