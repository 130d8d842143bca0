"""All checks, from causes to symptoms: when several fail, the first is the one to fix first."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from trm_core.diagnose.check import GROUPS, Check
from trm_core.diagnose.checks import (
    answers,
    capsule_answers,
    children,
    config,
    contradictions,
    evaluated,
    extremes,
    gradients,
    halting,
    labels,
    learning,
    masks,
    parts,
    placeholders,
    policy,
    puzzle_splits,
    puzzles,
    rates,
    resources,
    rounded,
    run,
    splits,
    twins,
)
from trm_core.errors import UsageError

CHECKS: tuple[Check, ...] = (
    run.TORN,
    run.RANKS,
    run.NEVER_SAVED,
    run.LOST,
    puzzle_splits.IDENTIFIERS,
    *puzzles.CHECKS,
    masks.CHECK,
    rounded.CHECK,
    placeholders.CHECK,
    capsule_answers.FILES,
    *splits.CHECKS,
    *labels.CHECKS,
    twins.CHECK,
    *children.CHECKS,
    *learning.CHECKS,
    *config.CHECKS,
    *extremes.CHECKS,
    contradictions.UNMIXED,
    rates.WARMUP,
    rates.TOO_HIGH,
    *contradictions.CHECKS,
    *gradients.CHECKS,
    rates.TOO_LOW,
    *resources.CHECKS,
    *parts.CHECKS,
    answers.COLLAPSE,
    *policy.CHECKS,
    evaluated.CHECK,
    halting.HALTING,
    *answers.CHECKS,
    *run.CHECKS,
)

OF_DATA = tuple(check for check in CHECKS if check.needs == ("data",))  # a config can make them more precise


def of_group(group: str) -> tuple[Check, ...]:
    """The checks of a group in GROUPS, or for "all" every check. Raises KeyError for any other name."""
    if group == "all":
        return CHECKS
    if group not in GROUPS:
        raise KeyError(group)
    return tuple(check for check in CHECKS if group in check.groups)


def without(checks: Sequence[Check], ignored: Iterable[str]) -> tuple[Check, ...]:
    """The checks except those named in `ignored`. Raises UsageError for a name that no check has."""
    names = [check.id for check in CHECKS]
    for name in ignored:
        if name not in names:
            meant = difflib.get_close_matches(name, names, n=1)
            raise UsageError(
                f"there is no check '{name}'{f'; did you mean {meant[0]}?' if meant else ''}",
                hint="their names stand before each finding, and in docs/diagnose.md",
            )
    return tuple(check for check in checks if check.id not in ignored)
