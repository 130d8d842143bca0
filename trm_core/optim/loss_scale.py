"""Loss scaling for gradients in float16, where small ones would become zero (Micikevicius et al., 2018,
arXiv 1710.03740, section 3.2).

The gradient of `value` times the loss, divided by `value`, is that of the loss. If it leaves the range of float16, the
step is skipped and the factor halved; after a while without that, the factor is doubled. All optimisers of a run and
all processes (which share gradients beforehand) take one decision, where torch's GradScaler takes one per optimiser.
"""

from __future__ import annotations

from dataclasses import dataclass

_GROWTH_STEPS = 2000  # as in torch.amp.GradScaler
_MOST = 2.0**24


@dataclass
class LossScale:
    """The current factor. Saved in the checkpoint."""

    value: float = 2.0**16
    held: int = 0  # steps in a row that stayed in range at this value

    def require_valid(self) -> None:
        """Raises ValueError for values that never occur in training."""
        if not (1.0 <= self.value <= _MOST and 0 <= self.held < _GROWTH_STEPS):
            raise ValueError(f"the loss scale is {self.value:g}, held for {self.held} steps")

    def hold(self) -> None:
        """A step's gradient stayed in range."""
        self.held += 1
        if self.held >= _GROWTH_STEPS:
            self.value, self.held = min(self.value * 2, _MOST), 0

    def lower(self) -> bool:
        """A step's gradient left the range: halve the factor. False if the factor can no longer be the cause."""
        if self.value <= 1.0:
            return False
        self.value, self.held = self.value / 2, 0
        return True
