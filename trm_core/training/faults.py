"""What to do about numbers that are not finite: skip the step, then roll back at half the rate, then give up.

All processes together check a step before anything is updated. One that is not finite is skipped whole: no weight,
average, codebook, memory slot or replay entry changes, and rows whose answers are not finite start over with other
samples. After more than `training.max_skipped_steps` in a row, the fault must be in the weights: training rolls back to
the last checkpoint saved after a finite step, skips the data seen since, and halves all learning rates from there on.
If that fails after `training.max_rollbacks` rollbacks, it ends with exit code 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trm_core.config.schema import TrainingConfig
from trm_core.errors import DivergedError
from trm_core.model.carry import Carry
from trm_core.training.checkpoint import Checkpoint


class NotFinite(Exception):
    """A step that must not be taken. Raised before anything is updated."""

    def __init__(self, what: str, carry: Carry, rows: Tensor) -> None:
        super().__init__(what)
        self.what = what
        self.carry = carry  # as it was before the step
        self.rows = rows  # [B] bool: rows to start over


def all_finite(saved: Checkpoint) -> bool:
    """Whether all tensors that the processes share and would save are finite."""
    tensors = (*saved.model.values(), *saved.training.values())
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())


@dataclass
class Faults:
    """How often steps were not finite, and what that has cost. Saved in the checkpoint."""

    skipped: int = 0  # steps, in all
    in_a_row: int = 0
    rollbacks: int = 0
    rate: float = 1.0  # factor on all learning rates

    def skip(self) -> None:
        self.skipped += 1
        self.in_a_row += 1

    def roll_back(self) -> None:
        self.in_a_row = 0
        self.rollbacks += 1
        self.rate /= 2

    def metrics(self) -> dict[str, float]:
        """What every line of metrics says about it."""
        return {
            "train/skipped_steps": float(self.skipped),
            "train/rollbacks": float(self.rollbacks),
            "train/rate_factor": self.rate,
        }

    def diverged(self, step: int, what: str, training: TrainingConfig, why_not: str) -> DivergedError:
        """The error to give up with. `why_not`: why there is no further rollback."""
        lower = self.rate / 2
        rates = f"training.base_lr={training.base_lr * lower:g}"
        if training.optimizer == "muon":
            rates += f" and training.muon_lr={training.muon_lr * lower:g}"
        return DivergedError(
            f"step {step}: {what}; {self.in_a_row} steps in a row were not finite, {self.rollbacks} rollbacks did not "
            f"help, and {why_not}",
            hint=f"lower the rate: {rates}, or training.grad_clip_norm="
            f"{training.grad_clip_norm / 2:g}; trm inspect-dataset looks for faults in the data",
        )
