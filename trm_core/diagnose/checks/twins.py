"""Check for samples that are equal, or nearly so, in several splits."""

from __future__ import annotations

import math

from trm_core.diagnose.check import Check, Finding, Verdict, ok
from trm_core.diagnose.checks.puzzle_splits import copies_across_splits
from trm_core.diagnose.checks.puzzles import puzzles_of
from trm_core.diagnose.evidence import Evidence

_APART = "build the data again with trm build-capsules or trm build-puzzles, which keep equal samples in one split"


def duplicates_across_splits(evidence: Evidence) -> Finding:
    puzzles = puzzles_of(evidence)
    if puzzles is not None:
        return copies_across_splits(puzzles)
    twins = evidence.file.twins
    split = evidence.file.held_out or "held-out"
    text = f"{100 * twins.equal:.3g} % of the {split} samples are also training samples"
    numbers = {"share": twins.equal}
    found = []
    for what, copies, name in (
        ("are near-copies of a training sample", twins.copies, "near"),
        ("share half of their capsules with one training sample", twins.shared, "shared"),
    ):
        numbers |= {name: copies.near, f"{name}_within": copies.within}
        if copies.are_copies and copies.near >= 0.05:
            labels = "" if math.isnan(copies.agree) else f", labels agree in {100 * copies.agree:.0f} % of these"
            found.append(
                f"{100 * copies.near:.0f} % of the {split} samples {what} ({100 * copies.within:.0f} % of the training "
                f"samples{labels})"
            )
    if twins.equal < 0.02 and found:
        most = max(copies.near for copies in (twins.copies, twins.shared) if copies.are_copies)
        return Finding(
            Verdict.FAIL if most >= 0.1 else Verdict.WARN,
            "; ".join(found),
            "likely",
            numbers,
            "The model has practically seen their answers, so accuracy on this split is too good to be true. A "
            "collection that was augmented, or has many versions of one sample, and was split afterwards looks like "
            "this.",
            advice="keep all versions of one sample in one split: build from the originals, augment the training split",
        )
    if twins.equal < 0.02 and twins.elsewhere:
        other, share = max(twins.elsewhere.items(), key=lambda item: item[1])
        return Finding(
            Verdict.FAIL if share >= 0.02 else Verdict.WARN,
            f"{text}, {100 * share:.3g} % are {other} samples too",
            numbers=numbers | {"elsewhere": share},
            why=f"What is chosen by accuracy on {other} has seen their answers, so accuracy on {split} is too good.",
            advice=_APART,
        )
    if twins.equal == 0:
        if twins.copies.near >= 0.05:
            text += f"; {100 * twins.copies.near:.0f} % lie near one, as training samples do to each other"
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if twins.equal >= 0.02 else Verdict.WARN,
        text,
        numbers=numbers,
        why="The model has seen their answers, so accuracy on this split is too good to be true.",
        advice=_APART,
    )


CHECK = Check(
    "duplicate-across-splits",
    ("data", "accuracy"),
    "held-out accuracy is too good",
    "ours",
    ("data",),
    duplicates_across_splits,
)
