"""Checks of gradients: NaN, norms, and parts that receive none."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.checks.settings import has_policy, slower
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.series import Series
from trm_core.diagnose.statistics import among, block_means, median, middle, rising

_TINY = 1e-3  # of the norm: a clipping threshold below this scales every gradient instead of limiting some
_RARE = 1000  # steps: one NaN in so many is no reason to lower the learning rate
_SKIPPED = re.compile(r"step (\d+): (.+); skipped")


def not_finite(evidence: Evidence) -> Finding:
    metrics = evidence.metrics
    skipped = metrics["train/skipped_steps"].finite()
    count = float(skipped.values.max()) if len(skipped) else 0.0
    rollbacks = max(metrics["train/rollbacks"].finite().values, default=0.0)
    steps = [(int(m[1]), m[2]) for line in (evidence.run.log if evidence.run else ()) if (m := _SKIPPED.search(line))]
    holes = metrics["train/loss"].steps[~np.isfinite(metrics["train/loss"].values)]
    count = max(count, float(len(steps)))
    gave_up = evidence.run is not None and evidence.run.status.get("exit_code") == 5
    numbers = {"skipped_steps": count, "rollbacks": float(rollbacks)}
    if not count and not rollbacks and not gave_up:
        return _lost(evidence, holes) if len(holes) else ok("no NaN or Inf in loss or gradient", **numbers)
    if steps:
        first = f"first at step {steps[0][0]}: {steps[0][1]}"
    else:
        gone = holes if len(holes) else skipped.steps[skipped.values > 0]
        first = f"first seen at step {gone[0]}" if len(gone) else "log.txt does not say where"
    seen = evidence.metrics.last_step
    before = skipped.between(0, seen - _RARE)
    recent = float(skipped.last - max(before.values, default=0.0)) if len(skipped) else 0.0
    recent = max(recent, float(sum(step > seen - _RARE for step, _ in steps)))
    many = gave_up or rollbacks > 0 or recent > 2 or count > max(2, seen / _RARE)
    if not many and count <= seen / _RARE:
        return Finding(
            Verdict.WARN,
            f"{count:.0f} of {seen} steps skipped because loss or gradient was not finite; {first}",
            numbers=numbers,
            why="The steps were skipped completely, so the weights are intact. Occasionally a single row causes this.",
            advice="look for that row if it happens again: trm inspect-dataset FILE",
        )
    return Finding(
        Verdict.FAIL if many else Verdict.WARN,
        f"{count:.0f} steps skipped because loss or gradient was not finite, {rollbacks:.0f} rollbacks; {first}",
        numbers=numbers,
        why="The steps were skipped completely, so the weights are intact. The causes are learning rates too high for "
        "these data or broken inputs; occasionally a single row.",
        fix=_tamer(evidence),
    )


def _lost(evidence: Evidence, holes: NDArray[np.int64]) -> Finding:
    """Lines without a loss, in the log of a program that skips no steps."""
    lines = len(evidence.metrics["train/loss"])
    return Finding(
        Verdict.FAIL if len(holes) > max(2, lines / _RARE) else Verdict.WARN,
        f"the loss is not finite in {len(holes)} of {lines} lines, first at step {holes[0]}",
        numbers={"lines": float(len(holes))},
        why="Nothing says that these steps were skipped, so the weights may be lost, too. The causes are learning "
        "rates too high for these data or broken inputs.",
        fix=_tamer(evidence),
    )


def _tamer(evidence: Evidence) -> dict[str, Any]:
    return {**slower(evidence, 2), "training.grad_clip_norm": evidence.settings.training.grad_clip_norm / 2}


def exploding(evidence: Evidence) -> Finding:
    metrics, training = evidence.metrics, evidence.settings.training
    norm = metrics["train/grad_norm"].between(0, evidence.learning_steps).finite()
    norm = norm.between(min(training.lr_warmup_steps, evidence.learning_steps // 2))
    if len(norm) < 4:
        return unknown("too few steps after warm-up")
    means = block_means(norm)
    early, late, limit = (
        middle(means[: max(len(means) // 4, 1)]),
        middle(means[-3:]),
        training.grad_clip_norm,
    )
    peak = float(norm.values.max())
    numbers = {"early": early, "late": late, "peak": peak, "clip": limit}
    text = f"gradient norm {early:.3g} early, {late:.3g} late, at most {peak:.3g} (clipped at {limit:g})"
    if limit < _TINY * early:
        limit = 0.1 * early  # compared with a threshold that is too small, any norm is large
    grows = late / max(early, 1e-12)
    # A norm that is large but constant is handled by clipping; see `clipping`.
    if late > 10 * limit and (grows > 5 or (late > 100 * limit and grows > 2)):
        verdict = Verdict.FAIL
    elif (late > 10 * limit and rising(norm) < 0.001) or peak > 1000 * max(limit, early):
        verdict = Verdict.WARN
    else:
        return ok(text, **numbers)
    tighter = {"training.grad_clip_norm": limit / 2} if grows > 2 else {}
    return Finding(
        verdict,
        text,
        "likely",
        numbers,
        "Clipping limits the size of a step, but its direction is that of the largest term. Growing norms often end in "
        "NaN.",
        {**slower(evidence, 3), **tighter},
    )


def dead_layer(evidence: Evidence) -> Finding:
    metrics, training = evidence.metrics, evidence.settings.training
    groups = [name for name in metrics if name.startswith("train/grad/layer_")]
    if not has_policy(evidence) or not len(metrics["train/dqn_loss"]):
        # Correct before Q-learning begins; other checks ask whether it begins.
        groups = [name for name in groups if not name.endswith("value_net")]
    if metrics["train/memory_filled"].last == 0:
        # An empty memory bank returns nothing and gets no gradient; another check asks why it is empty.
        groups = [name for name in groups if not name.endswith("memory")]
    if evidence.settings.loss_weights.reconstruction_loss == 0:
        # Untrained on purpose: no other loss reaches these parts, and only the checksum selector uses them.
        unused = {"train/grad/layer_sketch_decoder"}
        if evidence.settings.dqn.expansion_selector != "checksum":
            unused.add("train/grad/layer_reconstruction")
        groups = [name for name in groups if name not in unused]
    warm = min(training.lr_warmup_steps, evidence.learning_steps // 4)
    dead = {}
    for name in groups:
        norms = metrics[name].between(warm, evidence.learning_steps - 1).finite().values
        # The value net waits for its buffer and the cmi head for the first opening, so only the second half counts.
        late = norms[len(norms) // 2 :]
        if len(late) >= 3 and np.mean(late == 0) > 0.9:
            dead[name.removeprefix("train/grad/layer_")] = float(np.mean(norms == 0))
    zero = metrics["train/grad/num_zero"].between(warm, evidence.learning_steps - 1)
    means = block_means(zero)
    numbers = {"dead_parts": float(len(dead))} | ({"parameters_without": float(means[-1])} if len(means) else {})
    if dead:
        names = ", ".join(sorted(dead))
        return Finding(
            Verdict.FAIL,
            f"no gradient reaches {names}",
            numbers=numbers,
            why="A part without a gradient keeps its random initial weights. Its output is unused, its loss has weight "
            "0, or its gradient is cut off.",
            advice="check which loss term should reach it (loss_weights) and whether its output is used",
        )
    still, rate = metrics["train/unmoved_weights"].between(warm, evidence.learning_steps), metrics["train/lr"]
    # At a learning rate of 0 nothing moves; other checks ask why it is 0.
    moving = ~among(still.steps, rate.steps[rate.values == 0])
    unmoved = median(Series(still.steps[moving], still.values[moving]).tail(0.5))
    if unmoved > 0.005:
        return Finding(
            Verdict.FAIL,
            f"{100 * unmoved:.2g} % of the weights have a gradient, and no step moves them",
            numbers={**numbers, "unmoved": unmoved},
            why="They are in no optimiser, or in one whose rate is 0, and keep their random initial values.",
            advice="build optimisers from all of model.parameters(), as trm_core.optim.build does",
        )
    if not groups:
        return unknown("training.monitor_gradients is off")
    return ok(f"all {len(groups)} parts have a gradient", **numbers)


def clipping(evidence: Evidence) -> Finding:
    training = evidence.settings.training
    share = median(evidence.metrics["train/grad_clip_ratio"].between(training.lr_warmup_steps, evidence.learning_steps))
    if math.isnan(share):
        return unknown("too few steps after warm-up")
    text = f"{100 * share:.0f} % of the steps are clipped at training.grad_clip_norm={training.grad_clip_norm:g}"
    # Early norms, because if norms explode later, the threshold is not at fault.
    norms = evidence.metrics["train/grad_norm"].between(training.lr_warmup_steps, evidence.learning_steps)
    norm = min(median(norms), median(norms.head(0.25)))
    # These optimisers normalise by the gradient's size, so clipping does little more than even out the steps.
    if share < 0.98 or norm < 10 * training.grad_clip_norm:
        return ok(text, share=share)
    if training.grad_clip_norm < _TINY * norm:
        return Finding(
            Verdict.FAIL,
            f"{text}, {norm / training.grad_clip_norm:.2g} times below the usual norm",
            "likely",
            {"share": share, "norm": norm},
            "Gradients scaled down this far are smaller than the epsilon that optimisers add for stability, so nothing "
            "moves.",
            {"training.grad_clip_norm": 1.0},
        )
    return Finding(
        Verdict.WARN,
        text,
        "possible",
        {"share": share},
        "Every step has the same size, whatever the gradient.",
        {"training.grad_clip_norm": 4 * training.grad_clip_norm},
    )


CHECKS = (
    Check(
        "dead-layer",
        ("gradients", "accuracy"),
        "accuracy stops early",
        "pipeline.md Workflow 5 step 6",
        ("config", "metrics"),
        dead_layer,
        watched=True,
    ),
    Check("clipping", ("gradients",), "grad_clip_ratio near 1", "pipeline.md 5.5", ("config", "metrics"), clipping),
    Check(
        "exploding-gradients",
        ("gradients",),
        "grad_norm above 10 and growing",
        "pipeline.md Issue 5",
        ("config", "metrics"),
        exploding,
        watched=True,
    ),
    Check(
        "nan",
        ("gradients",),
        "loss becomes NaN, training crashes",
        "pipeline.md Issue 5, Workflow 2",
        ("config", "metrics"),
        not_finite,
        watched=True,
    ),
)
