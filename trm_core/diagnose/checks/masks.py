"""Check that the mask marks the capsules that are there, and not the padding."""

from __future__ import annotations

import numpy as np

from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.checks.puzzles import puzzles_of
from trm_core.diagnose.copies import row_hashes
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.statistics import distinct


def mask_inverted(evidence: Evidence) -> Finding:
    """A sample whose real capsules hold nothing, while its padding holds something, has its mask the other way round.
    Padding that holds something is harmless by itself, and so are single blank capsules. Padding that holds the same
    everywhere, such as -1 beside counts, is no content.
    """
    if puzzles_of(evidence) is not None:
        return unknown("puzzles have no mask")
    if "mask" not in evidence.file.training_rows:
        return ok("the file has no mask")
    rows = evidence.file.training_rows
    real = rows["mask"].astype(bool)
    filled = np.any(rows["sketches"] != 0, axis=2)
    if "children" in rows:
        filled |= np.any(rows["children"] != 0, axis=(2, 3))
    padding = filled & ~real
    held = [rows[name][padding] for name in ("sketches", "children") if name in rows]
    alike = not padding.any() or len(distinct(row_hashes(held))) == 1
    inverted = 0.0 if alike else float((~(filled & real).any(1) & padding.any(1)).mean())
    numbers = {"inverted": inverted, "padding_filled": float(filled[~real].mean()) if (~real).any() else 0.0}
    text = f"in {100 * inverted:.3g} % of the samples only the padding holds anything"
    if inverted < 0.02:
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if inverted > 0.1 else Verdict.WARN,
        text,
        numbers=numbers,
        why="The mask is true where a capsule is there. Other libraries mark the padding instead, for instance "
        "key_padding_mask; with such a mask the model sees the padding alone.",
        advice="store the mask the other way round (mask = ~padding), in all splits",
    )


CHECK = Check(
    "mask-inverted",
    ("data", "accuracy", "capsule-state"),
    "accuracy is far too low, or at chance",
    "ours",
    ("data",),
    mask_inverted,
)
