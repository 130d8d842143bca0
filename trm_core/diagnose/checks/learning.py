"""Checks of what a config lets learn: parts that are frozen, and the rows of a step."""

from __future__ import annotations

from trm_core.diagnose.check import Check, Finding, Verdict, ok
from trm_core.diagnose.evidence import Evidence

_SMALL = 64  # rows of a batch; a larger one may well be taken row by row, where no more fits into memory


def frozen_untrained(evidence: Evidence) -> Finding:
    training = evidence.settings.training
    frozen = ", ".join(training.freeze)
    if not training.freeze or training.init_from is not None:
        return ok(f"frozen: {frozen}, with weights from {training.init_from}" if frozen else "nothing is frozen")
    return Finding(
        Verdict.FAIL,
        f"training.freeze={frozen}, and training.init_from=null",
        numbers={"patterns": float(len(training.freeze))},
        why="What is frozen stays at its random initial values. Freezing is for weights that were trained before.",
        fix={"training.freeze": []},
        advice="or name the run or checkpoint with the weights: training.init_from",
    )


def parts_of_one_row(evidence: Evidence) -> Finding:
    training = evidence.settings.training
    parts, batch = training.accumulation_steps, training.global_batch_size
    rows = batch / (parts * evidence.processes)
    text = f"training.global_batch_size={batch} in {parts} parts"
    text += f" for each of {evidence.processes} processes" if evidence.processes > 1 else ""
    numbers = {"rows": rows, "parts": float(parts)}
    if parts == 1 or rows > 1 or batch >= _SMALL:
        return ok(f"{text}: {rows:g} rows at once", **numbers)
    return Finding(
        Verdict.FAIL,
        f"{text}: one row at once",
        "likely",
        numbers,
        "The batch is that of a whole step: accumulation divides it into parts to save memory, and does not multiply "
        "it. One row at a time saves nothing more, and a batch this small makes each step noisy.",
        {"training.global_batch_size": batch * parts},
    )


CHECKS = (
    Check(
        "frozen-untrained",
        ("config", "gradients"),
        "accuracy stays low, and some layers never change",
        "ours",
        ("config",),
        frozen_untrained,
    ),
    Check(
        "parts-of-one-row",
        ("config", "accuracy", "speed"),
        "training is noisy, and sees few samples",
        "ours",
        ("config",),
        parts_of_one_row,
    ),
)
