"""Run checks over evidence, and order what they find."""

from __future__ import annotations

from collections.abc import Iterable

from trm_core.diagnose.check import Check, Diagnosis, Verdict, unknown
from trm_core.diagnose.evidence import Evidence
from trm_core.errors import DataError

_ORDER = (Verdict.FAIL, Verdict.WARN, Verdict.UNKNOWN, Verdict.OK)
_MISSING = {
    "config": "no config",
    "data": "the data file is not there, or not built yet",
    "metrics": "nothing was logged",
    "run": "there is no run yet",
    "checkpoints": "there is no run yet",
}


def look(check: Check, evidence: Evidence) -> Diagnosis:
    """One check; it cannot tell where a part of the evidence is missing."""
    missing = [part for part in check.needs if not evidence.has(part)]
    if missing:
        return Diagnosis(check, unknown(_MISSING[missing[0]]))
    try:
        return Diagnosis(check, check.look(evidence))
    except (DataError, OSError) as error:  # a capsule file is read when it is first asked, and may be damaged inside
        return Diagnosis(check, unknown(f"the data cannot be read: {error}"))


def diagnose(checks: Iterable[Check], evidence: Evidence) -> list[Diagnosis]:
    """Failures first, then warnings; within these, causes before symptoms (the order of `checks`)."""
    found = [look(check, evidence) for check in checks]
    return sorted(found, key=lambda one: _ORDER.index(one.finding.verdict))
