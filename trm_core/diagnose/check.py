"""A check: a small object that looks at evidence and returns a verdict with its numbers and a fix.

Checks are pure: evidence in, finding out. `trm_core.diagnose.registry` lists them, from causes to symptoms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trm_core.diagnose.evidence import Evidence


class Verdict(StrEnum):
    """The outcome of a check."""

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
    config overrides (dotted key -> value); `advice`: what to do where no override helps.
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
    """`symptom`: in the words of a user who sees it. `source`: where in pipeline.md it comes from, or "ours". `needs`:
    the parts of the evidence that it requires (config, data, metrics, run, checkpoints); without one, its verdict is
    "cannot tell". `watched`: cheap enough to run repeatedly during training.
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
    """There is not enough evidence; `evidence` says what is missing."""
    return Finding(Verdict.UNKNOWN, evidence)
