"""How many cases the slow fuzz tests have."""

from __future__ import annotations

import os


def many(cases: int) -> int:
    """TRM_FUZZ_TIMES of them: 1 for a check of everything, 2 and more on demand."""
    return cases * int(os.environ.get("TRM_FUZZ_TIMES", "1"))
