"""Checks of the run itself: how it ended, its checkpoints, its processes, its machine."""

from __future__ import annotations

import math
import re
import shutil

import numpy as np

from trm_core.diagnose.check import Check, Finding, Verdict, ok
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.run_facts import RunFacts
from trm_core.diagnose.statistics import middle
from trm_core.errors import ExitCode

_DIVERGED = re.compile(r"no longer alike")
_BEFORE, _LEAST, _AFTER = 20, 5, 3  # lines before a start: at most, at least; lines after it
_BEYOND_NOISE = 4.0  # standard deviations of the lines before
_LOST = 0.4  # of what was learned: less may be noise or a different batch
_STARTS = 3  # alike: one may be a mistake that was mended
_SPACE = re.compile(r"no space|quota|disk", re.IGNORECASE)


def ranks(evidence: Evidence) -> Finding:
    facts = evidence.facts
    said = [line for line in (str(facts.status.get("error", "")), *facts.log_of_last_start) if _DIVERGED.search(line)]
    if not said:
        return ok("nothing says that processes differ")
    return Finding(
        Verdict.FAIL,
        said[0].strip()[:300],
        numbers={},
        why="Weights and counters must be the same in all processes. Different versions or machines, or code that "
        "draws or updates on one rank only, cause this.",
        advice="go back with --resume; compare the packages of the machines in environment.json",
    )


def lost(evidence: Evidence) -> Finding:
    """Does each resumed start continue at the loss where training had stopped?"""
    begun = [start.get("step") for start in evidence.facts.starts]
    steps = sorted({step for step in begun if isinstance(step, int) and step > 0})
    loss = evidence.metrics["train/lm_loss"].finite()
    at_first = middle(loss.values[:_AFTER]) if len(loss) else math.nan
    back: dict[int, tuple[float, float, float]] = {}
    for step in steps:
        before, after = loss.between(0, step).values[-_BEFORE:], loss.between(step + 1).values[:_AFTER]
        if len(before) < _LEAST or len(after) < _AFTER:
            continue
        ended, went_on = middle(before), middle(after)
        noise = 1.4826 * middle(np.abs(before - ended))
        learned = at_first - ended
        if min(learned, went_on - ended) > _BEYOND_NOISE * noise and learned > 0:
            back[step] = ((went_on - ended) / learned, ended, went_on)
    if not steps:
        return ok("one start")
    worst = max(back, key=lambda step: back[step][0], default=None)
    if worst is None or back[worst][0] < _LOST:
        return ok(f"{len(steps)} times it went on, with the loss that it had ended with", resumed=float(len(steps)))
    share, ended, went_on = back[worst]
    return Finding(
        Verdict.FAIL,
        f"the loss was {ended:.3g} when it stopped at step {worst} and {went_on:.3g} when it went on; it began with "
        f"{at_first:.3g}",
        "likely",
        {"step": float(worst), "lost": share, "ended": ended, "went_on": went_on},
        "It resumed from other weights than those it ended with. Weights may silently not have been loaded "
        "(strict=False), or a high rate threw them off at once.",
        advice="compare the names in the checkpoint with those of the model; resume with trm train --resume RUN",
    )


def never_saved(evidence: Evidence) -> Finding:
    """The same command again and again, from the same step: each start did again what the last one had lost. A run that
    is through, or has saved since, is not stuck any more; its first starts may also have failed at once.
    """
    starts, training = evidence.facts.starts, evidence.settings.training
    last = evidence.facts.last_start
    again = 0
    for start in reversed(starts):
        if not isinstance(last.get("step"), int) or any(start.get(key) != last.get(key) for key in ("step", "command")):
            break
        again += 1
    text = f"{again} of {len(starts)} starts began at step {last.get('step')} with the same command"
    if again < _STARTS or last["step"] >= training.total_steps:
        return ok(text if starts else "no start is recorded")
    total = training.total_steps
    saved = [one.step for one in evidence.checkpoints or [] if one.step > last["step"]]
    over = bool(saved) or evidence.facts.status.get("state") == "done"
    return Finding(
        Verdict.WARN if over else Verdict.FAIL,
        f"{text}: nothing was saved in between, with training.checkpoint_interval={training.checkpoint_interval} and "
        f"training.eval_interval={training.eval_interval}",
        "possible" if over else "likely",
        {"starts": float(again), "step": float(last["step"])},
        "What is not saved is lost when a job is killed without a warning, and the next start does it again.",
        {"training.checkpoint_interval": max(min(training.checkpoint_interval // 10, total // 20), 1)},
    )


def torn(evidence: Evidence) -> Finding:
    found = evidence.checkpoints or []
    damaged = [one for one in found if one.fault is not None]
    steps = evidence.facts.status.get("step", 0)
    if damaged:
        whole = [one for one in found if one.fault is None]
        back = f"; step {whole[0].step} verifies" if whole else "; none verifies"
        return Finding(
            Verdict.FAIL,
            f"{damaged[0].fault}{back}",
            numbers={"damaged": float(len(damaged)), "whole": float(len(whole))},
            why="Its bytes differ from those in its manifest. A faulty disk, an incomplete copy, or somebody changed "
            "them.",
            advice="--resume goes back to the newest checkpoint that verifies; delete the damaged folder",
        )
    folders = evidence.facts.path / "checkpoints"
    halves = (
        [p.name for p in folders.iterdir() if p.name.startswith("step_") and not (p / "manifest.json").is_file()]
        if folders.is_dir()
        else []
    )
    if halves:
        return Finding(
            Verdict.FAIL,
            f"{halves[0]} has no manifest",
            numbers={"damaged": float(len(halves))},
            why="A folder gets this name only when it is complete. Its manifest was lost since then.",
            advice="delete the folder; --resume goes back to the newest checkpoint that verifies",
        )
    if not found and isinstance(steps, int) and steps > evidence.settings.training.checkpoint_interval:
        return Finding(
            Verdict.WARN,
            f"no checkpoint after {steps} steps",
            numbers={"steps": float(steps)},
            why="A kill now would lose all progress.",
            fix={"training.checkpoint_interval": max(steps // 10, 1)},
        )
    return ok(f"{len(found)} checkpoints, all verify", count=float(len(found)))


def ended(evidence: Evidence) -> Finding:
    status = evidence.facts.status
    state, step, total = status.get("state"), status.get("step"), status.get("total_steps")
    text = f"{state} at step {step} of {total}"
    if state == "failed":
        return Finding(
            Verdict.FAIL,
            f"{text}: {str(status.get('error', ''))[:300]}",
            numbers={},
            why="The run ended with an error.",
            advice=_go_on(evidence.facts),
        )
    if evidence.facts.was_killed:
        return Finding(
            Verdict.FAIL,
            f"{text}, says status.json, but its process is gone",
            "likely",
            why="It was killed: by hand, by the machine's out-of-memory killer, or by a job's time limit.",
            advice=f"resume it: trm train --resume {evidence.facts.path}",
        )
    if not status:
        return Finding(Verdict.WARN, "status.json is missing or unreadable", why="Nobody can tell how the run ended.")
    return ok(text)


def _go_on(facts: RunFacts) -> str:
    mended = f"fix what it names, and resume it: trm train --resume {facts.path}"
    if facts.status.get("exit_code") != ExitCode.DATA:
        return mended
    # Rebuilt data have their rows in another order, so the position in the old data means nothing.
    return f"{mended}; data that are built again are others: begin a run with training.init_from={facts.path}"


def disk(evidence: Evidence) -> Finding:
    free = shutil.disk_usage(evidence.facts.path).free
    newest = max((one.bytes for one in evidence.checkpoints or []), default=0)
    said = [line for line in evidence.facts.log if "warning" in line and _SPACE.search(line)]
    failed = str(evidence.facts.status.get("error", "")) if evidence.facts.status.get("state") == "failed" else ""
    said += [failed] * ("cannot save" in failed and _SPACE.search(failed) is not None)
    numbers = {"free_gb": free / 1e9, "checkpoint_gb": newest / 1e9}
    text = f"{free / 1e9:.1f} GB free, a checkpoint takes {newest / 1e9:.2f}"
    if free > 3 * newest and not said:
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if free < newest or failed in said else Verdict.WARN,
        text + (f"; {said[-1].strip()[:200]}" if said else ""),
        "certain",
        numbers,
        "A checkpoint that does not fit is lost; older ones stay.",
        {"training.keep_checkpoints": 2},
        "free some space",
    )


RANKS = Check(
    "ranks-diverged",
    ("checkpoints", "environment"),
    "processes disagree",
    "ours",
    ("run",),
    ranks,
)
LOST = Check(
    "resume-lost",
    ("checkpoints", "accuracy"),
    "accuracy falls when a run is resumed",
    "ours",
    ("run", "metrics"),
    lost,
)
NEVER_SAVED = Check(
    "never-saved",
    ("checkpoints", "environment"),
    "a job starts again and again, and gets nowhere",
    "ours",
    ("run", "config"),
    never_saved,
)
TORN = Check(
    "checkpoint-torn",
    ("checkpoints",),
    "a checkpoint cannot be loaded",
    "pipeline.md checklist",
    ("run", "checkpoints", "config"),
    torn,
)
CHECKS = (
    Check(
        "disk-space", ("checkpoints", "environment"), "checkpoints are missing", "ours", ("run", "checkpoints"), disk
    ),
    Check("run-ended", ("checkpoints", "environment"), "the run ended early", "pipeline.md checklist", ("run",), ended),
)
