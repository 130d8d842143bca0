"""Config + capsule file -> what this run will really do: shapes, which features are on and why, and every
contradiction.

The only place that resolves `auto` and that knows which switches need what. Its answers are printed by `--dry-run`.
"""

from __future__ import annotations

from dataclasses import dataclass

from trm_core.config.schema import Config
from trm_core.data.store import CapsuleFile
from trm_core.errors import ConfigError
from trm_core.model.embedding import DataShape


@dataclass(frozen=True)
class Feature:
    """A switch of the pipeline, as this run has it."""

    name: str
    on: bool
    reason: str


@dataclass(frozen=True)
class Features:
    """What a run does with its data."""

    shape: DataShape
    expansion: bool
    dqn: bool
    cmi: bool
    status: list[Feature]


def resolve_features(config: Config, file: CapsuleFile) -> Features:
    """Raises ConfigError with every contradiction between the config and the file, each with the key to change."""
    arch, dqn = config.arch, config.dqn
    problems: list[str] = []
    has_children = file.num_children > 0
    expansion = has_children if arch.enable_capsule_expansion == "auto" else arch.enable_capsule_expansion
    if expansion and not has_children:
        problems.append(
            f"arch.enable_capsule_expansion=true, but {file.path} has no children: there is nothing to open. "
            "Set it to auto or false, or build the file with children"
        )
    if expansion and arch.q_head_num_actions == 2:
        problems.append(
            "arch.q_head_num_actions=2 leaves no EXPAND: set it to 3, or arch.enable_capsule_expansion=false"
        )
    use_dqn = expansion if dqn.enabled == "auto" else dqn.enabled
    if expansion and not use_dqn:
        problems.append(
            "dqn.enabled=false leaves nobody to choose EXPAND: set it to auto, or arch.enable_capsule_expansion=false"
        )
    if expansion and dqn.expansion_selector == "checksum" and not file.checksum_dim:
        problems.append(f"dqn.expansion_selector=checksum, but {file.path} has no checksums: use cmi or random")
    if expansion and dqn.expand_count > file.num_capsules:
        problems.append(f"dqn.expand_count={dqn.expand_count} exceeds the {file.num_capsules} capsules of {file.path}")
    training = config.training
    if training.predictor_steps is not None and not use_dqn:
        problems.append("training.predictor_steps leaves nothing to learn after it without a policy: set it to null")
    if training.predictor_steps is not None and training.predictor_steps > training.total_steps:
        problems.append(
            f"training.predictor_steps={training.predictor_steps} exceeds training.total_steps={training.total_steps}"
        )
    if use_dqn and dqn.buffer_capacity < (least := 2 * config.training.global_batch_size * arch.max_steps):
        problems.append(
            f"dqn.buffer_capacity={dqn.buffer_capacity} is overwritten before episodes end: at least {least} "
            "(2 * training.global_batch_size * arch.max_steps)"
        )
    if isinstance(arch.num_concepts, int) and file.task == "concepts" and file.num_classes != arch.num_concepts + 4:
        problems.append(
            f"arch.num_concepts={arch.num_concepts}, but {file.path} has {(file.num_classes or 4) - 4} concepts: "
            "set it to auto"
        )
    problems += [
        f"{key} is on, but this version has no {what}: set {key}={off}" for key, what, off in _not_here(config)
    ]
    if problems:
        raise ConfigError("the config contradicts the data or itself:\n  " + "\n  ".join(problems))
    if file.num_classes is None:
        raise ConfigError(
            f"{file.path} has no labels to train on", hint="build it with --label, or with concept targets"
        )

    shape = DataShape(
        num_capsules=file.num_capsules,
        dim=file.dim,
        num_children=file.num_children if expansion else 0,
        checksum_dim=file.checksum_dim,
        num_classes=file.num_classes,
        label_rank=file.label_rank,
        total_price=float(file.prices.sum()),
    )
    cmi = expansion and dqn.expansion_selector == "cmi"
    return Features(shape, expansion, use_dqn, cmi, _status(config, file, expansion, use_dqn))


def resolved(config: Config, features: Features) -> Config:
    """The config without `auto`, as it is written to the run directory."""
    arch = config.arch.model_copy(
        update={
            "enable_capsule_expansion": features.expansion,
            "q_head_num_actions": 3 if features.expansion else 2,
        }
    )
    return config.model_copy(update={"arch": arch, "dqn": config.dqn.model_copy(update={"enabled": features.dqn})})


def _not_here(config: Config) -> list[tuple[str, str, str]]:
    arch = config.arch
    wanted = [
        (config.memory.enabled, "memory.enabled", "memory bank", "false"),
        (arch.enable_adaptive_hcycles, "arch.enable_adaptive_hcycles", "adaptive H-cycles", "false"),
        (arch.enable_hierarchical_attention, "arch.enable_hierarchical_attention", "hierarchical attention", "false"),
        (arch.q_head_type != "mlp", "arch.q_head_type", f"{arch.q_head_type} Q-head", "mlp"),
    ]
    return [(key, what, off) for on, key, what, off in wanted if on]


def _status(config: Config, file: CapsuleFile, expansion: bool, use_dqn: bool) -> list[Feature]:
    arch, dqn = config.arch, config.dqn
    children = (
        f"{file.path.name} has {file.num_children} children per capsule"
        if file.num_children
        else "the file has no children"
    )
    asked = {"auto": "auto: "}.get(str(arch.enable_capsule_expansion), "by the config; ")
    entropy = dqn.enable_entropy_regularization and dqn.entropy_regularization_weight > 0
    why = "EXPAND needs a policy" if expansion else "by the config" if use_dqn else "nothing to buy"
    return [
        Feature("enable_capsule_expansion", expansion, asked + children),
        Feature(
            "enable_dqn",
            use_dqn,
            why,
        ),
        Feature("q_head_num_actions: 3", expansion, "CONTINUE, HALT, EXPAND" if expansion else "CONTINUE, HALT"),
        Feature("dqn_buffer_min_size", use_dqn, f"Q-learning starts after {dqn.buffer_min_size} transitions"),
        Feature(
            "enable_entropy_regularization",
            entropy,
            "epsilon explores; the term would bias Q" if not entropy else "by the config",
        ),
        Feature(
            "reconstruction",
            config.loss_weights.reconstruction_loss > 0,
            f"weight {config.loss_weights.reconstruction_loss}",
        ),
        Feature(
            "checksums",
            file.checksum_dim > 0,
            f"width {file.checksum_dim}" if file.checksum_dim else "none in the file",
        ),
        Feature("ema", config.training.ema_decay is not None, f"decay {config.training.ema_decay}"),
        Feature("enable_adaptive_hcycles", False, "not in this version"),
        Feature("enable_hierarchical_attention", False, "not in this version"),
        Feature("enable_memory", False, "not in this version"),
        Feature("concepts", False, "not in this version"),
        Feature("mtp", False, "not in this version"),
    ]
