"""Checks of the detail that EXPAND buys: does it exist, and does it say more than the sketch?"""

from __future__ import annotations

import math
from typing import Any

from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.checks.puzzles import puzzles_of
from trm_core.diagnose.evidence import Evidence


def children_missing(evidence: Evidence) -> Finding:
    children, config = evidence.file.file.num_children, evidence.config
    if children:
        blank = evidence.file.blank or 0.0
        filler = evidence.file.filler or 0.0
        text = f"{children} children per capsule, {100 * blank:.0f} % of the capsules have none but zeros"
        if filler > blank + 0.1:
            text += f", {100 * filler:.0f} % have the same ones as most samples in that place"
        if max(blank, filler) < 0.6:
            return ok(text, children=children, blank=blank, filler=filler)
        return Finding(
            Verdict.FAIL if max(blank, filler) > 0.9 else Verdict.WARN,
            text,
            numbers={"children": float(children), "blank": blank, "filler": filler},
            why="Opening such a capsule shows nothing. Padding and filled-in values should be masked, so that no "
            "policy pays for them.",
            advice="check the encoder that wrote them (trm inspect-dataset FILE names it)",
        )
    if puzzles_of(evidence) is not None:
        return ok("cells of puzzles are always seen completely: there is nothing to open", children=0)
    text = f"{evidence.file.file.path} has no children, so EXPAND has nothing to open"
    if config is None:
        return ok(text, children=0)
    if config.arch.enable_capsule_expansion is not True and config.dqn.enabled is not True:
        return ok(f"{text}; the config does not ask for it", children=0)
    return Finding(
        Verdict.FAIL,
        text,
        numbers={"children": 0},
        why="EXPAND shows the children of a capsule. Without them a policy can only choose when to halt.",
        advice="build the file again with children: trm build-capsules SOURCE --num-children 4",
    )


def children_equal_sketch(evidence: Evidence) -> Finding:
    config = evidence.config
    if config is not None and config.arch.enable_capsule_expansion is False and evidence.file.file.num_children:
        return ok("EXPAND is off, so nothing is paid for children")
    return _children_against_sketch(evidence)


def children_tell_nothing(evidence: Evidence) -> bool:
    """Whether leaving them closed is right."""
    return _children_against_sketch(evidence).verdict is Verdict.FAIL


def _left_closed(evidence: Evidence) -> dict[str, Any]:
    """Overrides that switch off opening, the policy, and the settings that require one."""
    fix: dict[str, Any] = {"arch.enable_capsule_expansion": False, "dqn.enabled": "auto"}
    config = evidence.config
    if config is not None and config.training.predictor_steps is not None:
        fix["training.predictor_steps"] = None
    if config is not None and config.dqn.enable_curiosity:
        fix["dqn.enable_curiosity"] = False
    return fix


def _children_against_sketch(evidence: Evidence) -> Finding:
    detail, probe = evidence.file.detail, evidence.file.probe
    if detail is None:
        return unknown("the file has no children")
    numbers = {"detail": detail}
    text = f"children differ from their sketch by {100 * detail:.3g} % of their size"
    fail = Finding(
        Verdict.FAIL,
        text,
        numbers=numbers,
        why="Opening a capsule shows what its sketch has already shown, so no policy can gain by it.",
        fix=_left_closed(evidence),
        advice="build sketches that are coarser than the children: trm build-capsules SOURCE --sketch leading "
        "--sketch-dims N",
    )
    if detail < 0.01:
        return fail
    told = evidence.file.told
    numbers["told"] = told
    spread = 0.0
    if probe is not None and probe.detail is not None:
        spread = math.sqrt(2 * probe.detail * (1 - probe.detail) / probe.cases) + 1e-9
    # Sketches can identify each of a few distinct sentences without saying what is in them. If a probe gains from the
    # children, they do say more.
    gains = probe is not None and (probe.detail or 0.0) - probe.sketches > max(0.05, 3 * spread)
    if told > 0.5 and not gains:
        return Finding(
            Verdict.FAIL,
            f"{text}, but a linear map tells {100 * told:.0f} % of them from sketches of their capsule and the next",
            "likely",
            numbers,
            fail.why,
            fail.fix,
            "children that were interpolated from sketches look like this: build them from the full detail",
        )
    if probe is None or probe.detail is None:
        return ok(text, **numbers)
    numbers |= {"probe_sketches": probe.sketches, "probe_children": probe.detail}
    text += f"; a linear probe gains {100 * (probe.detail - probe.sketches):+.1f} points by them"
    if detail < 0.1 and probe.detail < probe.sketches + 2 * spread:
        return Finding(Verdict.FAIL, text, "likely", numbers, fail.why, fail.fix, fail.advice)
    # Where sketches alone nearly suffice there is little to gain, which is not a fault of the children.
    nothing = probe.detail + 2 * spread < probe.sketches + 0.05
    little = detail < 0.5 and probe.detail - probe.sketches < 0.15 * (1 - probe.sketches)
    if (nothing or little) and probe.chance + 0.05 < probe.sketches < 0.97:
        return Finding(
            Verdict.WARN,
            text,
            "possible",
            numbers,
            "A policy that buys them gains little, unless they help in ways that a linear probe cannot see.",
            fail.fix,
            fail.advice,
        )
    return ok(text, **numbers)


CHECKS = (
    Check(
        "children-missing",
        ("data", "capsule-state", "expansion"),
        "KeyError: capsule_state; EXPAND does nothing",
        "pipeline.md Issue 1",
        ("data",),
        children_missing,
    ),
    Check(
        "children-equal-sketch", ("data", "expansion"), "EXPAND never pays", "ours", ("data",), children_equal_sketch
    ),
)
