"""Run checks over evidence and order their findings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from trm_core.diagnose.check import Check, Diagnosis, Verdict, unknown
from trm_core.diagnose.data_facts import DataFacts
from trm_core.diagnose.evidence import MOST_FILES, Evidence
from trm_core.errors import DataError

_ORDER = (Verdict.FAIL, Verdict.WARN, Verdict.UNKNOWN, Verdict.OK)
_TELLING = (Verdict.FAIL, Verdict.WARN, Verdict.OK, Verdict.UNKNOWN)
_MISSING = {
    "config": "no config",
    "data": "the data file is not there, or not built yet",
    "metrics": "nothing was logged",
    "run": "there is no run yet",
    "checkpoints": "there is no run yet",
}


def look(check: Check, evidence: Evidence) -> Diagnosis:
    """Run one check; its verdict is "cannot tell" where evidence that it needs is missing. A check that needs only data
    looks at each of the mixed files, and the worst answer counts.
    """
    if evidence.others and set(check.needs) == {"data"}:
        files = [evidence.data, *(other.data for other in evidence.others)][:MOST_FILES]
        return worst_of([_of_one_file(look(check, replace(evidence, data=data, others=[])), data) for data in files])
    missing = [part for part in check.needs if not evidence.has(part)]
    if missing:
        return Diagnosis(check, unknown(_MISSING[missing[0]]))
    try:
        return Diagnosis(check, check.look(evidence))
    except (DataError, OSError) as error:  # a capsule file is read lazily, so damage inside it shows only here
        return Diagnosis(check, unknown(f"the data cannot be read: {error}"))


def _of_one_file(found: Diagnosis, data: DataFacts | None) -> Diagnosis:
    """The finding with its file named, and without overrides: these would also change how the other files are used."""
    if data is None:
        return found
    said = f"{data.file.path}: {found.finding.evidence}"
    return replace(found, finding=replace(found.finding, evidence=said, fix={}))


def worst_of(found: Iterable[Diagnosis]) -> Diagnosis:
    """The worst of one check's answers about several data sets, the first of equals; "cannot tell" counts last."""
    return min(found, key=lambda one: _TELLING.index(one.finding.verdict))


def diagnose(checks: Iterable[Check], evidence: Evidence) -> list[Diagnosis]:
    """Failures first, then warnings; within these, causes before symptoms (the order of `checks`)."""
    return list(_agreeing(worst_first(look(check, evidence) for check in checks), evidence))


def worst_first(found: Iterable[Diagnosis]) -> list[Diagnosis]:
    """Ordered by verdict; findings with the same verdict keep their order."""
    return sorted(found, key=lambda one: _ORDER.index(one.finding.verdict))


def _agreeing(found: Iterable[Diagnosis], evidence: Evidence) -> Iterator[Diagnosis]:
    """Drop overrides that change nothing or contradict those of an earlier finding, which is closer to the cause."""
    ways: dict[str, Any] = {}
    for one in found:
        if one.finding.fix and evidence.has("config"):
            moves = {key: _way(_setting(evidence, key), value) for key, value in one.finding.fix.items()}
            fix = {key: one.finding.fix[key] for key, way in moves.items() if way != 0 and ways.get(key, way) == way}
            ways |= {key: moves[key] for key in fix}
            one = replace(one, finding=replace(one.finding, fix=fix))
        yield one


def _setting(evidence: Evidence, key: str) -> Any:
    value: Any = evidence.settings
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _way(now: Any, then: Any) -> Any:
    """The direction of a change. 1: up, -1: down, 0: none; for a value that is not a number, the new value as text."""
    if now == then:
        return 0
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (now, then))
    return (1 if then > now else -1) if numbers else str(then)
