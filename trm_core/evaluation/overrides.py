"""Settings that may be others than in training: how long the model thinks, and what it may spend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trm_core.config.load import load_recorded
from trm_core.config.schema import Config
from trm_core.errors import ConfigError
from trm_core.training.drift import differences, is_among
from trm_core.training.run_dir import CONFIG

# The weights fit whatever these say, and a model that is exported keeps them.
OF_A_MODEL = (
    "arch.H_cycles",
    "arch.L_cycles",
    "arch.grad_cycles",  # no gradient here, but it must not exceed H_cycles
    "arch.halt_threshold",
    "arch.enable_adaptive_hcycles",
    "arch.hcycle_confidence_threshold",
    "arch.restart_on_expand",
    "arch.concept_mix",
    "arch.hierarchy_bias.",
    "dqn.budget",
    "dqn.expand_count",
    "memory.top_k",
)
OF_AN_EVALUATION = (*OF_A_MODEL, "training.precision")
_OPTIONS = {
    "arch.max_steps": "--max-steps",
    "data.eval_path": "--data",
    "data.eval_split": "--split",
    "dqn.expansion_selector": "--selector",
    "training.device": "--device",
    "training.precision": "--weights, as an exported folder always computes in float32,",
}


def overridden(run: Path, overrides: Sequence[str], may_differ: Sequence[str]) -> tuple[Config, list[str]]:
    """The config of a run with overrides, and what they change, as text. Raises ConfigError for other settings than
    those: the trained weights depend on them, or they would have no effect.
    """
    recorded = load_recorded(run / CONFIG).config
    if not overrides:
        return recorded, []
    config = load_recorded(run / CONFIG, overrides).config
    found = differences(recorded, config)
    refused = [key for key in found if not is_among(key, may_differ)]
    if refused:
        options = [f"{_OPTIONS[key]} for {key}" for key in refused if key in _OPTIONS]
        raise ConfigError(
            f"{run} was trained with other settings, which cannot be changed here:\n  "
            + "\n  ".join(found[key] for key in refused),
            hint=f"there is {', '.join(options)}" if options else f"what can be changed: {', '.join(may_differ)}",
        )
    notes = list(found.values())
    if config.arch.enable_adaptive_hcycles and not recorded.arch.enable_adaptive_hcycles:
        notes.append("the halt logit was trained after the last H-cycle only, and now also decides after earlier ones")
    if "arch.halt_threshold" in found and config.arch.enable_q_continue:
        notes.append("arch.halt_threshold changes nothing here: this run halts by its continue logit")
    return config, notes
