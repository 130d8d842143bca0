"""A factor on the loss for gradients in float16, in which small ones would be zero (Micikevicius et al., 2018,
arXiv 1710.03740, section 3.2).

The gradient of `value` times the loss, divided by `value`, is that of the loss. Where it leaves the range of float16
the step is left out and the factor halved; after a while without that it is doubled. One decision for all optimisers of
a run and all processes (whose gradients are shared before it), where torch's GradScaler takes one for each optimiser.
"""

from __future__ import annotations

from dataclasses import dataclass

_GROWTH_STEPS = 2000  # as in torch.amp.GradScaler
_MOST = 2.0**24


@dataclass
class LossScale:
    """In the checkpoint."""

    value: float = 2.0**16
    held: int = 0  # steps in a row that stayed in range at this value

    def require_valid(self) -> None:
        """Raises ValueError for values that training never has."""
        if not (1.0 <= self.value <= _MOST and 0 <= self.held < _GROWTH_STEPS):
            raise ValueError(f"the loss scale is {self.value:g}, held for {self.held} steps")

    def hold(self) -> None:
        """A step's gradient stayed in range."""
        self.held += 1
        if self.held >= _GROWTH_STEPS:
            self.value, self.held = min(self.value * 2, _MOST), 0

    def lower(self) -> bool:
        """A step's gradient left the range: halve the factor. False where that cannot be the cause any more."""
        if self.value <= 1.0:
            return False
        self.value, self.held = self.value / 2, 0
        return True
