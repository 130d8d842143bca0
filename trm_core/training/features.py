"""Config + data file -> what this run will really do: shapes, which features are on and why, and every contradiction.

The only place that resolves `auto` and knows what each switch needs. `--dry-run` prints its answers.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from trm_core.config.schema import Config
from trm_core.data.dataset import Dataset
from trm_core.data.fields import CONTROL_SYMBOLS
from trm_core.data.puzzles.reader import PuzzleData
from trm_core.dqn.selectors import PEEKING
from trm_core.errors import ConfigError
from trm_core.model.data_shape import DataShape
from trm_core.model.token_embedding import prefix_length

_OF_CAPSULES = (
    "reconstruction",
    "checksums",
    "enable_hierarchical_attention",
    "expansion_selector",
)
_DEFAULT_CONCEPTS = 256  # codebook of arch.enable_concepts where the targets are classes


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
    curiosity: bool
    concept_targets: bool  # the answers are concepts of capsules, not classes
    status: list[Feature]


def resolve_features(config: Config, file: Dataset, num_puzzles: int = 0, processes: int = 1) -> Features:
    """Raises ConfigError with every contradiction between the config and the file, each with the key to change.

    num_puzzles: identifiers in all folders together, if there are several. processes: how many share the batch, each
    with a replay buffer of its own.
    """
    arch, dqn = config.arch, config.dqn
    problems: list[str] = []
    has_children = file.num_children > 0
    expansion = arch.enable_capsule_expansion
    if expansion == "auto":
        expansion = has_children and dqn.enabled is not False
    if expansion and not has_children:
        problems.append(
            f"arch.enable_capsule_expansion=true, but {file.path} has no children: there is nothing to open. "
            "Set it to auto or false, or build the file with children"
        )
    if expansion and arch.q_head_num_actions == 2:
        problems.append(
            "arch.q_head_num_actions=2 has no action EXPAND: set it to 3, or arch.enable_capsule_expansion=false"
        )
    use_dqn = expansion if dqn.enabled == "auto" else dqn.enabled
    if expansion and not use_dqn:
        problems.append(
            "dqn.enabled=false leaves nothing to choose EXPAND: set it to auto, or arch.enable_capsule_expansion=false"
        )
    if expansion and dqn.expansion_selector == "checksum" and not file.checksum_dim:
        problems.append(f"dqn.expansion_selector=checksum, but {file.path} has no checksums: use cmi or random")
    if expansion and dqn.expand_count > file.num_capsules:
        problems.append(f"dqn.expand_count={dqn.expand_count} exceeds the {file.num_capsules} capsules of {file.path}")
    training = config.training
    if training.predictor_steps is not None and not use_dqn:
        problems.append(
            "training.predictor_steps: without a policy, nothing is left to learn after these steps: set it to null"
        )
    if training.predictor_steps is not None and training.predictor_steps > training.total_steps:
        problems.append(
            f"training.predictor_steps={training.predictor_steps} exceeds training.total_steps={training.total_steps}: "
            f"for a short trial set training.predictor_steps={training.total_steps * 2 // 3}, or null"
        )
    rows, room = config.training.global_batch_size // processes, dqn.buffer_capacity // (2 * arch.max_steps)
    if use_dqn and dqn.buffer_capacity < (least := 2 * rows * arch.max_steps):
        problems.append(
            f"dqn.buffer_capacity={dqn.buffer_capacity} is overwritten before episodes end: at least {least} "
            f"(2 * training.global_batch_size{f' / {processes} processes' if processes > 1 else ''} * arch.max_steps)"
            # A resumed run must keep its buffer, but with fewer processes than before it can take a smaller batch.
            + (f", or training.global_batch_size={fits}" if (fits := room * processes) else "")
        )
    if (
        arch.enable_concepts
        and isinstance(arch.num_concepts, int)
        and file.task == "concepts"
        and file.num_classes != arch.num_concepts + 4
    ):
        problems.append(
            f"arch.num_concepts={arch.num_concepts}, but {file.path} has {(file.num_classes or 4) - 4} concepts: "
            "set it to auto"
        )
    problems += _contradictions(config, file, expansion, use_dqn)
    if problems:
        raise ConfigError("the config contradicts the data or itself:\n  " + "\n  ".join(problems))
    if file.num_classes is None and file.label_rank:
        raise ConfigError(
            f"{file.path} has labels, but its manifest does not say of how many classes",
            hint="give CapsuleWriter.close a manifest with num_classes",
        )
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
        has_parents=arch.enable_hierarchical_attention,
        vocab_size=(file.num_classes or 0) if isinstance(file, PuzzleData) else 0,
        num_puzzles=max(num_puzzles, file.num_puzzles) if isinstance(file, PuzzleData) else 0,
    )
    cmi = expansion and dqn.expansion_selector == "cmi"
    curiosity = use_dqn and dqn.enable_curiosity
    status = _status(config, file, expansion, use_dqn)
    if isinstance(file, PuzzleData):
        status = [*_puzzle_status(config, shape), *(some for some in status if some.name not in _OF_CAPSULES)]
    return Features(shape, expansion, use_dqn, cmi, curiosity, file.task == "concepts", status)


def resolved(config: Config, features: Features) -> Config:
    """The config with every `auto` resolved, as it is written to the run directory."""
    known = features.shape.num_classes - CONTROL_SYMBOLS if features.concept_targets else _DEFAULT_CONCEPTS
    arch = config.arch.model_copy(
        update={
            "enable_capsule_expansion": features.expansion,
            "q_head_num_actions": 3 if features.expansion else 2,
            "num_concepts": known if config.arch.num_concepts == "auto" else config.arch.num_concepts,
        }
    )
    return config.model_copy(update={"arch": arch, "dqn": config.dqn.model_copy(update={"enabled": features.dqn})})


def _contradictions(config: Config, file: Dataset, expansion: bool, use_dqn: bool) -> Iterator[str]:
    """What optional parts need but do not have, each with the key to change."""
    arch, dqn, memory = config.arch, config.dqn, config.memory
    if arch.enable_hierarchical_attention and not file.has("parents"):
        yield (
            f"arch.enable_hierarchical_attention=true, but {file.path} has no parents: set it to false, or build the "
            "file from text, images or grids"
        )
    if arch.enable_mtp and file.label_rank != 2:
        yield "arch.enable_mtp=true, but a sample has one answer, with no next position to predict: set it to false"
    elif arch.enable_mtp and arch.mtp_depth >= file.num_capsules:
        yield f"arch.mtp_depth={arch.mtp_depth} reaches past the {file.num_capsules} capsules: at most one less"
    if memory.enabled:
        for name in ("key_dim", "value_dim"):
            width = getattr(memory, name)
            if width != "auto" and width > arch.hidden_size:
                yield (
                    f"memory.{name}={width} is wider than arch.hidden_size={arch.hidden_size}: "
                    f"set memory.{name} to auto"
                )
            if width == "auto" and arch.hidden_size % memory.num_heads:
                yield (
                    f"memory.num_heads={memory.num_heads} does not divide arch.hidden_size={arch.hidden_size}, "
                    f"which memory.{name}=auto takes: change memory.num_heads"
                )
    if arch.enable_q_continue and use_dqn:
        yield "arch.enable_q_continue=true is for halting without Q-learning: set it to false, or dqn.enabled=false"
    if dqn.enable_curiosity and not use_dqn:
        yield "dqn.enable_curiosity=true, but there is no policy to reward: set it to false, or dqn.enabled=true"
    if dqn.sequence_length > 1 and arch.q_head_type != "rnn":
        yield (
            f"dqn.sequence_length={dqn.sequence_length} is for arch.q_head_type=rnn, not {arch.q_head_type}: "
            "set it to 1"
        )
    if dqn.sequence_length > arch.max_steps:
        yield (
            f"dqn.sequence_length={dqn.sequence_length} is longer than an episode of arch.max_steps={arch.max_steps}: "
            "lower it"
        )
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # torch.compile's choice
    if config.training.compile and shutil.which(compiler) is None:
        yield f"training.compile=true, but there is no compiler {compiler}: install it, or set training.compile=false"
    if arch.enable_adaptive_hcycles and arch.H_cycles == 1:
        yield "arch.enable_adaptive_hcycles=true has no loop to leave early with arch.H_cycles=1: set it to false"
    if arch.q_head_type == "attention" and arch.q_head_tokens > file.num_capsules:
        yield f"arch.q_head_tokens={arch.q_head_tokens} exceeds the {file.num_capsules} capsules of {file.path}"
    if arch.mixer == "mlp":
        if file.has("mask"):
            yield f"arch.mixer=mlp mixes padding in, and {file.path} has padding capsules: use attention"
        if arch.enable_hierarchical_attention:
            yield "arch.enable_hierarchical_attention=true needs attention: set arch.mixer=attention"
        if expansion and dqn.expansion_selector == "attention":
            yield "dqn.expansion_selector=attention needs attention: set arch.mixer=attention, or use cmi"
    if not isinstance(file, PuzzleData):
        if arch.puzzle_emb_ndim:
            yield f"arch.puzzle_emb_ndim={arch.puzzle_emb_ndim} is for puzzles, not for {file.path}: set it to 0"
        if config.data.draw == "batch":
            yield "data.draw=batch is for puzzles: set it to halted"


def _status(config: Config, file: Dataset, expansion: bool, use_dqn: bool) -> list[Feature]:
    arch, dqn = config.arch, config.dqn
    nothing = "a puzzle has nothing to open" if isinstance(file, PuzzleData) else "the file has no children"
    children = f"{file.path.name} has {file.num_children} children per capsule" if file.num_children else nothing
    if arch.enable_capsule_expansion == "auto" and file.num_children and not expansion:
        children = "dqn.enabled=false leaves nothing to choose it"
    asked = {"auto": "auto: "}.get(str(arch.enable_capsule_expansion), "set by the config; ")
    off = "halting by the halt logit" if isinstance(file, PuzzleData) else "nothing to buy"
    why = "EXPAND needs a policy" if expansion else "set by the config" if use_dqn else off
    return [
        Feature("enable_capsule_expansion", expansion, asked + children),
        Feature(
            "enable_dqn",
            use_dqn,
            why,
        ),
        Feature(
            "q_head_num_actions: 3",
            expansion,
            "CONTINUE, HALT, EXPAND" if expansion else "CONTINUE, HALT; EXPAND is off",
        ),
        Feature("dqn_buffer_min_size", use_dqn, f"Q-learning starts after {dqn.buffer_min_size} transitions"),
        _entropy(config, use_dqn),
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
        Feature(
            "enable_adaptive_hcycles",
            arch.enable_adaptive_hcycles,
            f"leaves the H loop at a halt logit above {arch.hcycle_confidence_threshold}, in evaluation",
        ),
        Feature(
            "enable_hierarchical_attention",
            arch.enable_hierarchical_attention,
            f"{file.path.name} has {'' if file.has('parents') else 'no '}parents",
        ),
        Feature("enable_memory", config.memory.enabled, f"{config.memory.capacity} slots, top {config.memory.top_k}"),
        Feature("concepts", arch.enable_concepts, f"mix {arch.concept_mix}"),
        Feature("mtp", arch.enable_mtp, "one answer per sample" if file.label_rank == 1 else f"depth {arch.mtp_depth}"),
        Feature("q_head_type", use_dqn, arch.q_head_type),
        Feature("replay", use_dqn, dqn.replay),
        Feature("curiosity", use_dqn and dqn.enable_curiosity, f"weight {dqn.curiosity_weight}"),
        Feature("expansion_selector", expansion, dqn.expansion_selector + _peeks(dqn.expansion_selector)),
    ]


def _entropy(config: Config, use_dqn: bool) -> Feature:
    name, weight = "enable_entropy_regularization", config.dqn.entropy_regularization_weight
    if not config.dqn.enable_entropy_regularization:
        alone = f"dqn.entropy_regularization_weight={weight:g} alone does nothing"
        return Feature(name, False, alone if weight else "epsilon explores; the term would bias Q")
    factors = {
        "dqn.entropy_regularization_weight": weight,
        "loss_weights.entropy_bonus": config.loss_weights.entropy_bonus,
    }
    for key, value in factors.items():
        if value == 0:
            return Feature(name, False, f"{key} is 0")
    return Feature(name, use_dqn, f"weight {weight:g}" if use_dqn else "no Q-values are learned")


def _puzzle_status(config: Config, shape: DataShape) -> list[Feature]:
    arch, held = config.arch, config.dqn.halt_exploration
    prefix = prefix_length(arch, shape)
    return [
        Feature(
            "puzzle_embeddings",
            prefix > 0,
            f"{shape.num_puzzles} identifiers, {arch.puzzle_emb_ndim} numbers each, before the tokens in {prefix} "
            "positions",
        ),
        Feature("rope", arch.pos_encodings == "rope", f"positions: {arch.pos_encodings}"),
        Feature("mixer: mlp", arch.mixer == "mlp", arch.mixer),
        Feature("stablemax", arch.probabilities == "stablemax", arch.probabilities),
        Feature(
            "halt_exploration",
            held > 0,
            f"{held:g} of the puzzles must think for a random number of steps before they may halt (drawn for each "
            f"{config.dqn.halt_exploration_draw})",
        ),
    ]


def _peeks(selector: str) -> str:
    return " (peeks at unopened detail)" if selector in PEEKING else ""
