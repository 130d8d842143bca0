"""The schedules of the decision process, each a function of the global step alone, so that resuming needs no state."""

from __future__ import annotations

from trm_core.config.schema import Config, DQNConfig, WeightRange


def _linear(start: float, end: float, progress: float) -> float:
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def epsilon_at(config: DQNConfig, step: int) -> float:
    """Exploration rate: linear from start to end over epsilon_decay steps."""
    return _linear(config.epsilon_start, config.epsilon_end, step / config.epsilon_decay)


def temperature_at(config: DQNConfig, step: int) -> float:
    """Temperature of the entropy term's softmax(Q / tau)."""
    return _linear(config.temperature_start, config.temperature_end, step / config.temperature_decay)


def price_share_at(config: DQNConfig, step: int) -> float:
    """Share of the price level that is charged: 1, or rising to 1 over price_warmup_steps."""
    return min((step + 1) / config.price_warmup_steps, 1.0) if config.price_warmup_steps else 1.0


def beta_at(config: Config, step: int) -> float:
    """Exponent of the importance weights: from priority_beta_start to 1 at the end of training."""
    return _linear(config.dqn.priority_beta_start, 1.0, step / config.training.total_steps)


def weight_at(weight: float | WeightRange, progress: float) -> float:
    """A loss weight at `progress` (0 to 1) of training; a range rises linearly from low to high."""
    return _linear(weight.low, weight.high, progress) if isinstance(weight, WeightRange) else weight
