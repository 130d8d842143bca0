"""What a check is: one small object that looks at evidence and gives a verdict, its numbers, and the mend.

Checks are pure: evidence in, finding out. They are listed, from causes to symptoms, in `trm_core.diagnose.registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trm_core.diagnose.evidence import Evidence


class Verdict(StrEnum):
    """What a check says."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "cannot tell"


GROUPS = (
    "data", "capsule-state", "dqn", "expansion", "gradients", "memory", "memory-bank", "speed", "accuracy", "config",
    "checkpoints", "environment",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What one check found. `evidence`: one line with the numbers; `why`: the reason in at most two sentences; `fix`:
    config overrides (dotted key -> value); `advice`: the mend where no override does it.
    """

    verdict: Verdict
    evidence: str = ""
    sure: str = "certain"  # certain, likely, possible
    numbers: Mapping[str, float] = field(default_factory=dict)
    why: str = ""
    fix: Mapping[str, Any] = field(default_factory=dict)
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """`symptom`: in the words of somebody who has it. `source`: where in pipeline.md it comes from, or "ours". `needs`:
    parts of the evidence without which it cannot tell: config, data, metrics, run, checkpoints. `watched`: cheap
    enough to run again and again during training.
    """

    id: str
    groups: tuple[str, ...]
    symptom: str
    source: str
    needs: tuple[str, ...]
    look: Callable[[Evidence], Finding]
    watched: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """A check and what it found."""

    check: Check
    finding: Finding


def ok(evidence: str, **numbers: float) -> Finding:
    return Finding(Verdict.OK, evidence, numbers=numbers)


def unknown(evidence: str) -> Finding:
    """The evidence does not suffice; `evidence` says what is missing."""
    return Finding(Verdict.UNKNOWN, evidence)
