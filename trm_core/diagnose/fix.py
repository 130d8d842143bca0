"""From findings to a config that fixes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from trm_core.config import load_config_dict
from trm_core.config.schema import Config
from trm_core.diagnose.check import Diagnosis, Finding, Verdict
from trm_core.diagnose.diagnose import look
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.registry import CHECKS
from trm_core.diagnose.series import Metrics
from trm_core.errors import CheckFailed


def overrides(fix: Mapping[str, Any]) -> list[str]:
    """The fix as overrides for the command line."""
    return [f"{key}={_text(value)}" for key, value in fix.items()]


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value)


def in_words(finding: Finding) -> str:
    """The fix on one line; empty if there is none."""
    parts = [" ".join(overrides(finding.fix)), finding.advice]
    return "fix: " + "; or ".join(part for part in parts if part) if any(parts) else ""


def chosen(found: Iterable[Diagnosis]) -> dict[str, Any]:
    """The overrides to apply: those of the first finding that has any, and of every other finding that is certain.
    Where two set the same key, the earlier wins, being closer to the cause. Warnings count only if nothing fails.
    """
    wrong = [one.finding for one in found if one.finding.fix and one.finding.verdict in (Verdict.FAIL, Verdict.WARN)]
    failing = [finding for finding in wrong if finding.verdict is Verdict.FAIL] or wrong
    fix: dict[str, Any] = {}
    for number, finding in enumerate(failing):
        if number == 0 or finding.sure == "certain":
            fix = {**finding.fix, **fix}
    return fix


def fixed(evidence: Evidence, found: list[Diagnosis]) -> tuple[Config, dict[str, Any]]:
    """A config with the fixes applied, and the fixes. It is for a new run, so `training.run_dir` is null. Where a fix
    causes another fault (a shorter run, whose replay buffer then fills too late), that is fixed as well.

    Raises CheckFailed if there is nothing to fix, or if a check that can judge a config does not pass the fixed one.
    """
    fix = chosen(found)
    if not fix:
        raise CheckFailed("no finding has overrides that fix it", hint="see the advice beside each finding")
    failed = {one.check.id for one in found if one.finding.verdict is Verdict.FAIL}
    before = {one.check.id for one in _failing(evidence, evidence.settings)}
    for follows in _failing(evidence, _with(evidence, fix)):
        if follows.check.id not in before | failed:
            fix = {**follows.finding.fix, **fix}
    config = _with(evidence, fix)
    touched = {one.check.id for one in found if set(one.finding.fix) & set(fix)}
    failing = [one.check.id for one in _failing(evidence, config)]
    still = [name for name in failing if name in touched or name not in before]
    if still:
        raise CheckFailed(f"the fixed config does not pass {', '.join(still)}", hint="change what its finding names")
    return config, fix


def _with(evidence: Evidence, fix: Mapping[str, Any]) -> Config:
    plain = evidence.settings.model_dump(mode="json")
    return load_config_dict(plain, [*overrides(fix), "training.run_dir=null"], name="the fixed config").config


def _failing(evidence: Evidence, config: Config) -> list[Diagnosis]:
    """Checks that a config fails before its run. Metrics and run are left out, since they belong to another config, and
    so are checks of data alone, which no config can fix.
    """
    ahead = [check for check in CHECKS if "config" in check.needs and set(check.needs) <= {"config", "data"}]
    anew = replace(evidence, config=config, metrics=Metrics({}), run=None, checkpoints=None)
    looked = [look(check, anew) for check in ahead]
    return [one for one in looked if one.finding.verdict is Verdict.FAIL]
