"""Alternative spellings: the keys of the pipeline document that trm implements, mapped to the schema's.

`model` is `arch`; DQN, reward and entropy keys may stand under `training` or `dqn`, with or without the `dqn_` prefix;
memory keys may carry `memory_`; a loss weight may be written as a range, `0.005-0.5`. Used by `trm_core.config.load` on
files and overrides alike.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from typing import Any

from trm_core.config.schema import Config
from trm_core.config.schema_keys import leaves, sections

_NUMBER = r"\d+(?:\.\d*)?(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*-\s*({_NUMBER})\s*")


@functools.cache
def aliases() -> dict[str, str]:
    """Accepted dotted spelling -> canonical key. Sections in spellings are canonical already, except `model` itself."""
    table = {
        "model": "arch",
        "arch.expansion_cost_per_child": "dqn.expansion_cost_per_child",
        "training.enable_mtp": "arch.enable_mtp",
        "dqn.enable_dqn": "dqn.enabled",
        "training.enable_dqn": "dqn.enabled",
        "memory.enable_memory": "memory.enabled",
    }
    for key in leaves():
        section, _, name = key.rpartition(".")
        if section == "dqn":
            # `dqn_loss` is the pipeline's name of a loss weight, not of the TD loss's kind.
            if name not in ("enabled", "loss"):
                table[f"dqn.dqn_{name}"] = table[f"training.dqn_{name}"] = key
            if name.startswith("reward_") or "entropy" in name or name == "expansion_cost_per_child":
                table[f"training.{name}"] = key
        elif section == "memory" and name != "enabled":
            table[f"memory.memory_{name}"] = key
    return table


def canonical(dotted: str) -> str:
    """The schema's spelling of a dotted key. Of an unknown key, only the known sections are translated."""
    first, *rest = dotted.split(".")
    name = aliases().get(first, first)
    for part in rest:
        name = f"{name}.{part}"
        name = aliases().get(name, name)
    return name


# What other code, mainly the public TRM's and HRM's, calls our settings. These names are not accepted, only used to
# suggest the right key.
ELSEWHERE = {
    "lr": "training.base_lr",
    "learning_rate": "training.base_lr",
    "batch_size": "training.global_batch_size",
    "epochs": "training.total_steps",
    "num_epochs": "training.total_steps",
    "max_steps": "arch.max_steps (reasoning) or training.total_steps",
    "beta1": "training.betas",
    "beta2": "training.betas",
    "ema": "training.ema_decay",
    "ema_rate": "training.ema_decay",
    "forward_dtype": "training.precision",
    "data_path": "data.path",
    "data_paths": "data.path",
    "halt_max_steps": "arch.max_steps",
    "halt_exploration_prob": "dqn.halt_exploration",
    "expansion": "arch.ffn_expansion",
    "L_layers": "arch.num_layers",
    "H_layers": "arch.num_layers",
    "mlp_t": "arch.mixer",
    "puzzle_emb_len": "arch.puzzle_emb_len",
    "seed": "training.seed",
}


@functools.cache
def all_spellings() -> list[str]:
    """Every dotted key that is accepted, canonical ones first, then aliases (also those under `model`)."""
    model = [key.replace("arch.", "model.", 1) for key in [*leaves(), *aliases()] if key.startswith("arch.")]
    return [*leaves(), *(section for section in sections() if section), "extends", *aliases(), *model]


def canonical_value(key: str, value: Any) -> Any:
    """A value as the schema writes it: the range `0.005-0.5` of a loss weight becomes {low, high}."""
    if key == "loss_weights.dqn_loss" and isinstance(value, str) and (found := _RANGE.fullmatch(value)):
        return {"low": float(found[1]), "high": float(found[2])}
    return value


def without_effect(config: Config, given: Collection[str]) -> list[str]:
    """One sentence per loss weight in `given` that has no effect under these settings, and one where the entropy term
    is only half configured (its switch without its weight, or the reverse).
    """
    no_expansion = config.arch.enable_capsule_expansion is False or config.arch.q_head_num_actions == 2
    reasons = {
        "expansion_cost": "it is a metric now; EXPAND is paid for in the reward (dqn.expansion_cost_per_child)",
    }
    switches = {
        "q_continue_loss": (config.arch.enable_q_continue, "arch.enable_q_continue is false"),
        "vq_loss": (config.arch.enable_concepts, "arch.enable_concepts is false"),
        "mtp_loss": (config.arch.enable_mtp, "arch.enable_mtp is false"),
        "rnd_loss": (config.dqn.enable_curiosity, "dqn.enable_curiosity is false"),
    }
    reasons |= {name: why for name, (on, why) in switches.items() if not on}
    if config.dqn.enabled is False:
        reasons["dqn_loss"] = "dqn.enabled is false"
    if config.dqn.enabled is False or not config.dqn.enable_entropy_regularization:
        reasons["entropy_bonus"] = "entropy regularization is off"
    if config.dqn.expansion_selector != "cmi":
        reasons["cmi_loss"] = f"dqn.expansion_selector is {config.dqn.expansion_selector}"
    if no_expansion:
        reasons["cmi_loss"] = "EXPAND is off"
    reasons = {f"loss_weights.{name}": reason for name, reason in reasons.items()}
    entropy, weight = "dqn.enable_entropy_regularization", "dqn.entropy_regularization_weight"
    if not config.dqn.enable_entropy_regularization:
        reasons[weight] = f"{entropy} is false"
    elif config.dqn.entropy_regularization_weight == 0:
        reasons[entropy] = f"{weight} is 0"
    return [
        f"{key} has no effect: {reason}"
        for key, reason in reasons.items()
        if key in given and functools.reduce(getattr, key.split("."), config) != 0
    ]
