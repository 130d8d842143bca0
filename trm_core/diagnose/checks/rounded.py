"""Check that the numbers of a capsule file have not been cut to a few whole ones."""

from __future__ import annotations

import numpy as np

from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.checks.puzzles import puzzles_of
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.statistics import distinct

_FEW = 20  # values
_ROWS = 300  # that are looked at
_NEARLY_ALL, _SELDOM = 0.95, 0.1


def values_cut(evidence: Evidence) -> Finding:
    """A cast to whole numbers leaves few values, most of them 0. So do categories and counts, but these have no
    negative values, and means of them, such as sketches, are no whole numbers. The three values -1, 0 and 1 may be a
    code (a board, votes) unless they are nearly all 0.
    """
    if puzzles_of(evidence) is not None:
        return unknown("tokens are whole numbers")
    rows = {name: values[:_ROWS] for name, values in evidence.file.training_rows.items()}
    if not rows:
        return unknown("there are no training rows")
    sketches, children = rows["sketches"], rows.get("children")
    parts = [sketches] if children is None else [sketches, children]
    if any(np.any(part != np.rint(part)) for part in parts):
        return ok("there are numbers with decimals")
    values = distinct(np.concatenate([distinct(part.ravel()) for part in parts]))
    zero = float((sketches == 0).mean())
    text = f"all numbers are whole, of {len(values)} values ({values[0]:g} to {values[-1]:g}); {100 * zero:.0f} % are 0"
    numbers = {"values": float(len(values)), "zero": zero}
    if not 1 < len(values) <= _FEW or zero < 0.4:
        return ok(text, **numbers)
    signed = bool(values[0] < 0) and (len(values) > 3 or zero > _NEARLY_ALL)
    rounded_means = children is not None and _rounded_means(sketches.astype(float), children.astype(float))
    if not signed and not rounded_means:
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL,
        text,
        "likely",
        numbers,
        "What lay between whole numbers is lost, and with it most of what samples differ in. A cast such as "
        "astype(int8) after too small a factor does this.",
        advice="store the numbers as float16, or as integers with a factor that leaves a hundred steps and more",
    )


def _rounded_means(sketches: np.ndarray, children: np.ndarray) -> bool:
    """Whether sketches look like the means of their children, cut to whole numbers. Of children of 0 and 1, a sketch
    that says whether any or most are 1 is as close to the mean; a mean that was cut is hardly ever above it. Capsules
    whose sketches are always 0, so that nothing about them is free, are left out.
    """
    told = sketches.any((0, 2))
    if not told.any():
        return False
    sketches, children = sketches[:, told], children[:, told]
    means = children.mean(2)
    fractional = means != np.rint(means)
    if fractional.mean() <= 0.1 or np.any(np.abs(sketches - means) > 1.0):
        return False
    flags = max(sketches.max(), children.max()) <= 1 and min(sketches.min(), children.min()) >= 0
    return not flags or float((sketches > means)[fractional].mean()) < _SELDOM


CHECK = Check(
    "values-cut",
    ("data", "accuracy"),
    "accuracy stays low, and samples look alike",
    "ours",
    ("data",),
    values_cut,
)
