"""Show what checks found, on screen and as JSON, for `trm diagnose` and `trm inspect-dataset`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trm_core.diagnose.check import Diagnosis


def show_findings(found: Sequence[Diagnosis]) -> None:
    """Print what is wrong first, each finding with its reason and fix, then the rest in one line per verdict."""
    from trm_cli.console import out
    from trm_core.diagnose.check import Verdict
    from trm_core.diagnose.fix import in_words

    for one in loud(found):
        finding = one.finding
        sure = "" if finding.sure == "certain" else f" ({finding.sure})"
        out(f"\n{finding.verdict.upper()}  {one.check.id}{sure}: {finding.evidence}")
        out(f"      {finding.why}")
        mend = in_words(finding)
        if mend:
            out(f"      {mend}")
    out("")
    for verdict in (Verdict.UNKNOWN, Verdict.OK):
        names = [one.check.id for one in found if one.finding.verdict is verdict]
        if names:
            out(f"{verdict}: {', '.join(names)}")


def conclude(found: Sequence[Diagnosis], damaged: bool, quick: bool) -> None:
    """End an inspection of data: print what the checks found, or that nothing is wrong. quick: checks were skipped."""
    from trm_cli.console import out

    if not quick:
        show_findings(found)
    if not damaged and not loud(found):
        out("no damage found; the checks were left out (--quick)" if quick else "no problems found")


def loud(found: Sequence[Diagnosis]) -> list[Diagnosis]:
    """Failures and warnings."""
    from trm_core.diagnose.check import Verdict

    return [one for one in found if one.finding.verdict in (Verdict.FAIL, Verdict.WARN)]


def failed(found: Sequence[Diagnosis]) -> str:
    """How many checks failed and which, for the last line of a command; empty if none did."""
    from trm_core.diagnose.check import Verdict

    names = [one.check.id for one in found if one.finding.verdict is Verdict.FAIL]
    return f"{len(names)} of {len(found)} checks: {', '.join(names)}" if names else ""


def as_json(one: Diagnosis) -> dict[str, object]:
    check, finding = one.check, one.finding
    return {
        "id": check.id,
        "groups": list(check.groups),
        "symptom": check.symptom,
        "source": check.source,
        "verdict": str(finding.verdict),
        "sure": finding.sure,
        "evidence": finding.evidence,
        "numbers": dict(finding.numbers),
        "why": finding.why,
        "fix": dict(finding.fix),
        "advice": finding.advice,
    }
