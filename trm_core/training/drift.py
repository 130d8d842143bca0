"""Which settings may change when a run is resumed, and the refusal of all others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trm_core.config.schema import Config
from trm_core.errors import ConfigError

# Learning rates, clips, batch, intervals and loss weights may change when a run is resumed, and that is recorded.
# Changing anything else would make the saved state mean something different.
MAY_CHANGE = (
    "name",
    "training.run_dir",
    "training.device",
    "training.threads",
    "training.total_steps",
    "training.stop_at_step",
    "training.time_limit",
    "training.time_margin",
    "training.global_batch_size",
    "training.accumulation_steps",
    "training.base_lr",
    "training.muon_lr",
    "training.lr_min_ratio",
    "training.lr_warmup_steps",
    "training.weight_decay",
    "training.puzzle_emb_lr",
    "training.puzzle_emb_weight_decay",
    "training.max_skipped_steps",
    "training.max_rollbacks",
    "training.grad_clip_norm",
    "training.log_interval",
    "training.watch",
    "training.eval_interval",
    "training.checkpoint_interval",
    "training.keep_checkpoints",
    "dqn.lr",
    "dqn.grad_clip_norm",
    "data.num_workers",
    "data.cache_dir",
    "data.eval_path",
    "data.eval_split",
    "loss_weights.",
    "logging.",
)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(flatten(inner, f"{prefix}.{key}" if prefix else key))
    return flat


def differences(before: Config, after: Config) -> dict[str, str]:
    """Settings that differ, by dotted key, as text."""
    old, new = flatten(before.model_dump(mode="json")), flatten(after.model_dump(mode="json"))
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return {key: f"{key}: {old.get(key)} -> {new.get(key)}" for key in changed}


def is_among(key: str, keys: Sequence[str]) -> bool:
    """Whether `key` is one of `keys`, or in one of the sections among them, which end with a dot."""
    return any(key == one or (one[-1] == "." and key.startswith(one)) for one in keys)


def refuse_drift(saved: Config, now: Config, run: Path) -> list[str]:
    """The allowed changes, as text. Raises ConfigError with every other difference."""
    found = differences(saved, now)
    refused = [text for key, text in found.items() if not is_among(key, MAY_CHANGE)]
    if refused:
        raise ConfigError(
            f"the config differs from that of {run} in settings that its state depends on:\n  " + "\n  ".join(refused),
            hint="resume with the run's own config, or start a new run",
        )
    return list(found.values())
