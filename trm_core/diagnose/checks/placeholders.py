"""Find numbers that stand for a missing value: far from all others at their position, and always the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trm_core.diagnose.check import Check, Finding, Verdict, ok
from trm_core.diagnose.checks.puzzles import puzzles_of
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.statistics import distinct

_MEASURED = (None, "none", "columns")  # encoders that keep the numbers of the source, or scale them
_PLACES = 2000  # positions examined in a field; a position is one coordinate of every row
_AGAIN = 3  # rows that must have the number
_FAR = 30.0  # interquartile ranges
_CODES = 2  # distinct numbers that far away at one position, such as 98 and 99; more are the end of a scale
_KINDS = 10  # distinct numbers at a position; with fewer, the quartiles may be two nearly equal numbers
_MANY = 0.2  # of the rows: beyond this it is a kind of row rather than an exception


def placeholders(evidence: Evidence) -> Finding:
    if puzzles_of(evidence) is not None or evidence.file.capsules.manifest.get("encoder") not in _MEASURED:
        return ok("only for arrays and tables: the numbers of other encoders are not measurements")
    found: list[tuple[float, float, float, str]] = []  # share of rows, value, how far, field
    for name in ("sketches", "children"):
        values = evidence.file.training_rows.get(name)
        if values is not None and len(values) >= 50:
            one = far_and_alike(values.reshape(len(values), -1))
            found += [] if one is None else [(*one, name)]
    if not found:
        return ok("no value lies repeatedly far from all others of its place")
    share, value, far, name = max(found)
    return Finding(
        Verdict.FAIL,
        f"{value:g} stands in {100 * share:.2g} % of the training rows' {name}, {far:.3g} widths of the middle half "
        "away from the other numbers of its place",
        "likely",
        {"value": value, "rows": share, "far": far},
        "A number that stands for a missing value, such as -999, is read as a measurement. The input's scale is taken "
        "from all numbers, so beside it the others hardly differ.",
        advice="leave the value out when building the data: an empty cell of a table is a missing value, a capsule "
        "that does not exist is masked",
    )


def far_and_alike(rows: NDArray[np.floating]) -> tuple[float, float, float] | None:
    """(share of rows, value, distance in interquartile ranges) of the outlying number that most rows [N, places] have,
    if there is one. Zeros do not count, since padding is filled with them.
    """
    places = distinct(np.linspace(0, rows.shape[1] - 1, _PLACES).astype(np.int64))
    ordered = np.sort(rows[:, places].astype(np.float32), axis=0)
    at_ends = [_alike(ordered), _alike(-ordered[::-1])]
    if at_ends[1] is not None:
        share, value, far = at_ends[1]
        at_ends[1] = share, -value, far
    return max(filter(None, at_ends), default=None)


def _alike(ordered: NDArray[np.float32]) -> tuple[float, float, float] | None:
    """The same for the smallest number at each position, given rows [N, places] sorted along N."""
    count = len(ordered)
    alike = (ordered == ordered[0]).sum(0)

    def of_others(part: float) -> NDArray[np.float32]:
        row = alike + (part * (count - alike)).astype(np.int64)
        return np.take_along_axis(ordered, np.minimum(row, count - 1)[None], axis=0)[0]

    low, width = of_others(0.25), of_others(0.75) - of_others(0.25)
    far = np.divide(low - ordered[0], width, out=np.zeros_like(width), where=width > 0)
    another = np.diff(ordered, axis=0) != 0
    coded = ordered[:-1] < low - _FAR * width
    nearest = np.take_along_axis(ordered, coded.sum(0)[None], axis=0)[0]  # nearest of the other numbers
    apart = nearest - ordered[0] > ordered[-1] - nearest
    told = apart & (another.sum(0) >= _KINDS) & ((another & coded).sum(0) <= _CODES)
    told &= (alike >= _AGAIN) & (alike <= _MANY * count) & (far > _FAR) & (ordered[0] != 0)
    if not told.any():
        return None
    at = int(np.argmax(np.where(told, alike, 0)))
    return float(alike[at]) / count, float(ordered[0, at]), float(far[at])


CHECK = Check(
    "placeholder-values",
    ("data", "accuracy"),
    "accuracy stays low: missing values are coded as numbers",
    "ours",
    ("data",),
    placeholders,
)
