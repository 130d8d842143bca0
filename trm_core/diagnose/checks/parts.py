"""Checks of the optional parts: memory bank and concepts."""

from __future__ import annotations

import math

import numpy as np

from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.statistics import block_means, median, middle


def bank(evidence: Evidence) -> Finding:
    if not evidence.settings.memory.enabled:
        return unknown("memory.enabled is off")
    metrics = evidence.metrics
    filled = metrics["train/memory_filled"].last
    writes, gate = median(metrics["train/memory_writes"]), median(metrics["train/memory_gate"].tail(0.2))
    if math.isnan(filled):
        return unknown("nothing was logged yet")
    numbers = {"filled": filled, "writes": writes, "gate": gate}
    text = f"{100 * filled:.0f} % of the slots in use, {writes:.3g} written per step, gate {gate:.2g}"
    threshold = evidence.settings.memory.reward_threshold
    if filled == 0 and metrics.last_step > 50:
        return Finding(
            Verdict.FAIL,
            text,
            numbers=numbers,
            why=f"A row is written if its terminal reward reaches {threshold:g} (memory.reward_threshold); none does.",
            fix={"memory.reward_threshold": -0.5},
        )
    memory, seen = evidence.settings.memory, metrics.last_step * evidence.settings.training.global_batch_size
    if filled < 0.1 and seen > 20 * memory.capacity:
        return Finding(
            Verdict.FAIL if filled < 0.05 else Verdict.WARN,
            f"{text}, after {seen} rows for {memory.capacity} slots",
            "likely",
            numbers,
            f"New rows are merged into old ones from a cosine of {memory.dedup_threshold:g} on "
            "(memory.dedup_threshold), so a few slots stand for everything.",
            {"memory.dedup_threshold": type(memory).model_fields["dedup_threshold"].default},
        )
    return ok(text, **numbers)


def codebook(evidence: Evidence) -> Finding:
    arch = evidence.settings.arch
    if not arch.enable_concepts:
        return unknown("arch.enable_concepts is off")
    metrics, learning = evidence.metrics, evidence.learning_steps
    # Each code is a moving average over about 1 / (1 - decay) steps.
    reach = (1 - arch.concept_decay) * learning
    if reach < 2:
        return Finding(
            Verdict.FAIL if reach < 1 else Verdict.WARN,
            f"arch.concept_decay={arch.concept_decay:.10g}: in {learning} steps a concept goes "
            f"{100 * (1 - math.exp(-reach)):.2g} % of the way to what it stands for",
            numbers={"decay": arch.concept_decay, "reach": reach},
            why="Concepts stay where they were first placed, and z_H moves away from them.",
            fix={"arch.concept_decay": round(min(max(0.8, 1 - 20 / learning), 0.99), 4)},
        )
    perplexity = metrics["train/concept_perplexity"].between(0, learning).tail(0.3).finite().values
    usage = metrics["train/concept_usage"].between(0, learning).tail(0.3).finite().values
    if len(perplexity) < 3:
        return unknown("nothing was logged yet")
    used, share = middle(perplexity), middle(usage) if len(usage) else float("nan")
    loss = block_means(metrics["train/vq_loss"].between(0, learning))
    drift = float(loss[-1] / max(loss[: max(len(loss) // 4, 1)].min(), 1e-12)) if len(loss) >= 4 else 1.0
    dead = metrics["train/concept_dead"].between(learning // 2, learning).finite().values
    # Dead concepts are normally reinitialised from the data; a constant number of dead ones means that they are not.
    left = float(dead[0]) if len(dead) >= 10 and np.all(dead == dead[0]) else 0.0
    numbers = {"perplexity": used, "usage": share, "drift": drift, "left_dead": left}
    text = (
        f"{used:.1f} concepts effectively in use, {100 * share:.0f} % chosen; z_H {drift:.2g} times as far as at best"
    )
    fix = {"arch.concept_decay": 0.95, "loss_weights.vq_loss": 1.0}
    if left:
        text += f"; {left:.0f} stay dead"
    if used < 1.5 or (drift > 20 and used < 4) or left > 0.1 * float(arch.num_concepts):
        return Finding(
            Verdict.FAIL,
            text,
            "likely",
            numbers,
            "The codebook no longer follows what it should describe, so few concepts stand for everything.",
            fix,
        )
    if used < 2 or drift > 20:
        return Finding(Verdict.WARN, text, "possible", numbers, "The codebook hardly follows z_H.", fix)
    return ok(text, **numbers)


CHECKS = (
    Check(
        "codebook-stale",
        ("memory-bank", "accuracy"),
        "one concept for everything",
        "ours",
        ("config",),
        codebook,
        watched=True,
    ),
    Check(
        "memory-bank-empty",
        ("memory-bank",),
        "the memory bank does nothing",
        "pipeline.md Memory Bank Config",
        ("config", "metrics"),
        bank,
        watched=True,
    ),
)
