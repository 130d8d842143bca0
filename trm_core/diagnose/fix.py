"""From findings to a config that mends them."""

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
from trm_core.diagnose.series import Metrics
from trm_core.errors import CheckFailed


def overrides(fix: Mapping[str, Any]) -> list[str]:
    """As the command line takes them."""
    return [f"{key}={_text(value)}" for key, value in fix.items()]


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value)


def in_words(finding: Finding) -> str:
    """The mend on one line; empty where there is none."""
    parts = [" ".join(overrides(finding.fix)), finding.advice]
    return "fix: " + "; or ".join(part for part in parts if part) if any(parts) else ""


def chosen(found: Iterable[Diagnosis]) -> dict[str, Any]:
    """The overrides to apply: those of the first finding that has some, and of every other that is certain. Of two
    that set one key the earlier wins: it is nearer to the cause. Warnings count where nothing fails.
    """
    wrong = [one.finding for one in found if one.finding.fix and one.finding.verdict in (Verdict.FAIL, Verdict.WARN)]
    failing = [finding for finding in wrong if finding.verdict is Verdict.FAIL] or wrong
    fix: dict[str, Any] = {}
    for number, finding in enumerate(failing):
        if number == 0 or finding.sure == "certain":
            fix = {**finding.fix, **fix}
    return fix


def fixed(evidence: Evidence, found: list[Diagnosis]) -> tuple[Config, dict[str, Any]]:
    """A config with the fixes, and these. It goes into a run of its own, so `training.run_dir` is null.

    Raises CheckFailed if there is nothing to fix, or if a check that can judge a config does not pass the fixed one.
    """
    fix = chosen(found)
    if not fix:
        raise CheckFailed("no finding has overrides that mend it", hint="see the advice beside each finding")
    plain = evidence.settings.model_dump(mode="json")
    config = load_config_dict(plain, [*overrides(fix), "training.run_dir=null"], name="the fixed config").config
    # What was measured belongs to the old config; a check that needs it has to see a new run.
    anew = replace(evidence, config=config, metrics=Metrics({}))
    still = [
        one.check.id
        for one in found
        if one.finding.verdict is Verdict.FAIL
        and set(one.finding.fix) & set(fix)
        and look(one.check, anew).finding.verdict is Verdict.FAIL
    ]
    if still:
        raise CheckFailed(f"the fixed config does not pass {', '.join(still)}", hint="change what its finding names")
    return config, fix
