"""Damage to the folder of a finished run."""

from __future__ import annotations

from pathlib import Path

from tests.faults.plan import Fault, Plan
from trm_core.training.checkpoint_folders import MANIFEST, MODEL, TRAINING, list_checkpoints


def checkpoint_torn(plan: Plan) -> None:
    """Mild: a bit of the newest checkpoint is flipped. Middle: its weights end in the middle. Severe: so do those of
    every checkpoint, and the newest has no manifest that could be read.
    """

    def tear(run: Path) -> None:
        newest, *older = list_checkpoints(run)
        if plan.severity == 0:
            content = bytearray((newest / TRAINING).read_bytes())
            content[len(content) // 2] ^= 1
            (newest / TRAINING).write_bytes(content)
            return
        halve(newest / MODEL)
        if plan.severity == 2:
            halve(newest / MANIFEST)
            for folder in older:
                halve(folder / MODEL)

    plan.after.append(tear)


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


FAULTS = (Fault("checkpoint-torn", ("checkpoint-torn",), checkpoint_torn),)
