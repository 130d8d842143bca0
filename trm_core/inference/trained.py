"""A model that is ready to answer, and everything that its answers depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trm_core.config.schema import Config, DQNConfig
from trm_core.data.encoding import Encoding
from trm_core.data.puzzles.meaning import Meaning
from trm_core.dqn.selectors import PEEKING, READING_DETAIL
from trm_core.errors import UsageError
from trm_core.evaluation.policies import PLAIN, LearnedPolicy, Policy, ThresholdPolicy
from trm_core.model.trm import TinyRecursiveModel

POLICIES = ("learned", "threshold", *PLAIN)


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode on its device. It is only read, so threads may share it."""

    model: TinyRecursiveModel
    config: Config
    prices: NDArray[np.float32]  # [k] cost of opening each capsule
    class_names: list[str] | None
    masked: bool  # the training data had padding capsules
    source: Path  # where it was loaded from
    about: dict[str, Any] = field(default_factory=dict)  # step, data, split, kind; changed: by overrides
    preprocessing: Path | None = None  # the capsule file or folder that holds the encoder of raw samples
    puzzles: Meaning | None = None  # what the tokens of a puzzle model mean
    identifiers: Any = None  # which puzzles it has embeddings for, as `identifiers_record` writes it
    encoding: Encoding | None = None  # what the numbers of its training data mean; None: puzzles
    notes: Sequence[str] = ()  # what its user should know of how it was loaded
    step_limit: int | None = None  # reasoning steps before HALT is forced; None: as trained

    @property
    def dqn(self) -> DQNConfig:
        return self.config.dqn

    @property
    def device(self) -> torch.device:
        return self.model.first_z_H.device

    @property
    def max_steps(self) -> int:
        return self.step_limit or self.config.arch.max_steps

    def with_max_steps(self, number: int | None) -> Trained:
        """The same model, forced to halt after `number` steps, which may be fewer or more than in training. Raises
        UsageError.
        """
        if number is not None and number < 1:
            raise UsageError(f"max_steps={number}: at least one step is needed")
        return replace(self, step_limit=number)

    @property
    def can_expand(self) -> bool:
        return bool(self.config.arch.enable_capsule_expansion) and self.model.data.num_children > 0

    @property
    def peeks(self) -> bool:
        """Whether choosing a capsule looks at side information about its unopened detail."""
        return self.can_expand and self.dqn.expansion_selector in PEEKING

    @property
    def reads_detail(self) -> bool:
        """Whether choosing a capsule needs the detail of all, so that it has to be there from the start."""
        return self.can_expand and self.dqn.expansion_selector in READING_DETAIL

    def policy(self, name: str | None = None, price: float | None = None, confidence: float = 0.95) -> Policy:
        """How to act. None: as the model learned to, or by the halt output if it learned no values. price: reward per
        price unit (None: the run's own), confidence: for `threshold`. Raises UsageError.
        """
        name = name or ("learned" if self.dqn.enabled else "act")
        level = self.model.price_level if price is None else price
        if name not in POLICIES:
            raise UsageError(f"unknown policy '{name}'", hint=f"choose from {', '.join(POLICIES)}")
        if not level > 0 or not np.isfinite(level):
            raise UsageError(f"price {level} is not above 0")
        if not 0 <= confidence <= 1:
            raise UsageError(f"confidence {confidence} is not between 0 and 1")
        if name == "learned":
            if not self.dqn.enabled:
                raise UsageError("policy 'learned' needs a run with dqn.enabled", hint="use act, threshold, never, all")
            return LearnedPolicy(level)
        if name == "threshold":
            return ThresholdPolicy(confidence, level)
        return PLAIN[name](level)
