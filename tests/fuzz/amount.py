"""The number of cases in the slow fuzz tests."""

from __future__ import annotations

import os


def many(cases: int) -> int:
    """`cases` times TRM_FUZZ_TIMES, which is 1 by default."""
    return cases * int(os.environ.get("TRM_FUZZ_TIMES", "1"))
