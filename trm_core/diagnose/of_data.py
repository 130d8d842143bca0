"""Checks that need only data, without a config: `trm inspect-dataset` shows their findings below its tables.

The full inspection (`trm_core.data.inspect`, `trm_core.data.puzzles.inspect`) has counted all rows; the checks use its
counts instead of estimating them from a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trm_core.data.inspect import Inspection, is_legacy
from trm_core.data.puzzles.inspect import PuzzleInspection
from trm_core.diagnose.check import Check, Diagnosis
from trm_core.diagnose.checks.puzzles import NO_PUZZLES
from trm_core.diagnose.data_facts import DataFacts
from trm_core.diagnose.diagnose import look, worst_first, worst_of
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.puzzle_facts import PuzzleFacts
from trm_core.diagnose.registry import OF_DATA

Progress = Callable[[str, int, int], None]


def checks_of_capsules(
    inspection: Inspection, progress: Progress, checks: Sequence[Check] = OF_DATA
) -> list[Diagnosis]:
    """Check the inspected file, each held-out split against training. None for a legacy file, which has no splits."""
    if is_legacy(inspection.path):
        return []
    found = _judged(DataFacts(inspection.path, None, inspection.across_splits), progress, checks)
    return [one for one in found if one.finding.evidence != NO_PUZZLES]


def checks_of_puzzles(
    inspection: PuzzleInspection, progress: Progress, checks: Sequence[Check] = OF_DATA
) -> list[Diagnosis]:
    """Check the inspected folder, each held-out split against training."""
    return _judged(PuzzleFacts(inspection.path, surveys=inspection.surveys), progress, checks)


def _judged(facts: DataFacts, progress: Progress, checks: Sequence[Check]) -> list[Diagnosis]:
    """One diagnosis for each check: the worst over all held-out splits."""
    others = [name for name, rows in facts.file.rows.items() if rows and name not in ("train", facts.held_out)]
    total = len(checks) * (1 + len(others))
    seen: list[Diagnosis] = []
    for held_out in (facts.held_out, *others):
        evidence = Evidence(data=facts if held_out == facts.held_out else facts.beside(str(held_out)))
        for check in checks:
            progress("checks", len(seen), total)
            seen.append(look(check, evidence))
    progress("checks", total, total)
    return worst_first(worst_of(seen[number :: len(checks)]) for number in range(len(checks)))
