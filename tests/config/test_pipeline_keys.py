"""The YAML blocks of the user's pipeline document load unchanged: copies of their keys and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trm_core.config import InvalidConfig, LoadedConfig, load_config

ARCHITECTURE = """\
model:
  hidden_size: 512
  num_layers: 12
  num_heads: 8
  H_cycles: 3
  L_cycles: 2
  q_head_num_actions: 3
  q_head_type: "mlp"
  q_head_hidden_dim: 512
  enable_capsule_expansion: true
  expansion_cost_per_child: 0.01
  enable_adaptive_hcycles: true
  hcycle_confidence_threshold: 2.0
  enable_hierarchical_attention: false
  num_concepts: 2048
  concept_dim: 512
"""
TRAINING = """\
training:
  global_batch_size: 768
  base_lr: 3e-4
  lr_warmup_steps: 2000
  total_steps: 100000
  lr_min_ratio: 0.1
  optimizer: "adamatan2"
  weight_decay: 0.01
  grad_clip_norm: 1.0
  log_interval: 1
  eval_interval: 1000
  checkpoint_interval: 5000
"""
DQN = """\
dqn:
  enable_dqn: true
  dqn_buffer_capacity: 100000
  dqn_buffer_min_size: 1000
  dqn_batch_size: 256
  dqn_gamma: 0.99
  dqn_target_update_freq: 1000
  dqn_epsilon_start: 1.0
  dqn_epsilon_end: 0.01
  dqn_epsilon_decay: 10000
  reward_step_penalty: 0.01
  reward_terminal_correct: 1.0
  reward_terminal_incorrect: -0.5
  reward_expansion_bonus: 0.1
  enable_entropy_regularization: true
  entropy_regularization_weight: 0.01
"""
MEMORY = """\
memory:
  enable_memory: true
  memory_capacity: 4096
  memory_key_dim: 512
  memory_value_dim: 512
  memory_num_heads: 8
  memory_top_k: 4
"""
LOSS_WEIGHTS = """\
loss_weights:
  lm_loss: 1.0
  q_halt_loss: 0.5
  q_continue_loss: 0.5
  reconstruction_loss: 0.5
  expansion_cost: 0.01
  vq_loss: 0.25
  dqn_loss: 0.005-0.5
  mtp_loss: 0.5
  entropy_bonus: 1.0
"""
QUICK_ENABLE = """\
arch:
  H_cycles: 3
  L_cycles: 2
  hidden_size: 512
  num_layers: 12
  q_head_num_actions: 3
  q_head_type: "mlp"
  enable_adaptive_hcycles: true
  hcycle_confidence_threshold: 2.0
  enable_capsule_expansion: true
  expansion_cost_per_child: 0.01
  enable_hierarchical_attention: false
  num_concepts: 2048
  concept_dim: 512
training:
  enable_dqn: true
  dqn_buffer_capacity: 100000
  dqn_buffer_min_size: 1000
  dqn_batch_size: 256
  dqn_gamma: 0.99
  enable_entropy_regularization: true
  entropy_regularization_weight: 0.01
  reward_step_penalty: 0.01
  reward_terminal_correct: 1.0
  reward_terminal_incorrect: -0.5
  reward_expansion_bonus: 0.1
"""

# Canonical key -> value that the blocks above must arrive at.
ARCH_FACTS = {
    "arch.hidden_size": 512,
    "arch.num_layers": 12,
    "arch.H_cycles": 3,
    "arch.L_cycles": 2,
    "arch.q_head_num_actions": 3,
    "arch.q_head_type": "mlp",
    "arch.enable_capsule_expansion": True,
    "dqn.expansion_cost_per_child": 0.01,
    "arch.enable_adaptive_hcycles": True,
    "arch.hcycle_confidence_threshold": 2.0,
    "arch.enable_hierarchical_attention": False,
    "arch.num_concepts": 2048,
    "arch.concept_dim": 512,
}
DQN_FACTS = {
    "dqn.enabled": True,
    "dqn.buffer_capacity": 100000,
    "dqn.buffer_min_size": 1000,
    "dqn.batch_size": 256,
    "dqn.gamma": 0.99,
    "dqn.reward_step_penalty": 0.01,
    "dqn.reward_terminal_correct": 1.0,
    "dqn.reward_terminal_incorrect": -0.5,
    "dqn.reward_expansion_bonus": 0.1,
    "dqn.enable_entropy_regularization": True,
    "dqn.entropy_regularization_weight": 0.01,
}
BLOCKS: dict[str, tuple[str, dict[str, Any]]] = {
    "architecture": (ARCHITECTURE, {**ARCH_FACTS, "arch.num_heads": 8, "arch.q_head_hidden_dim": 512}),
    "training": (
        TRAINING,
        {
            "training.global_batch_size": 768,
            "training.base_lr": 3e-4,
            "training.lr_warmup_steps": 2000,
            "training.total_steps": 100000,
            "training.lr_min_ratio": 0.1,
            "training.optimizer": "adamatan2",
            "training.weight_decay": 0.01,
            "training.grad_clip_norm": 1.0,
            "training.log_interval": 1,
            "training.eval_interval": 1000,
            "training.checkpoint_interval": 5000,
        },
    ),
    "dqn": (
        DQN,
        {
            **DQN_FACTS,
            "dqn.target_update_freq": 1000,
            "dqn.epsilon_start": 1.0,
            "dqn.epsilon_end": 0.01,
            "dqn.epsilon_decay": 10000,
        },
    ),
    "memory": (
        MEMORY,
        {
            "memory.enabled": True,
            "memory.capacity": 4096,
            "memory.key_dim": 512,
            "memory.value_dim": 512,
            "memory.num_heads": 8,
            "memory.top_k": 4,
        },
    ),
    "loss_weights": (
        LOSS_WEIGHTS,
        {
            "loss_weights.lm_loss": 1.0,
            "loss_weights.q_halt_loss": 0.5,
            "loss_weights.q_continue_loss": 0.5,
            "loss_weights.reconstruction_loss": 0.5,
            "loss_weights.expansion_cost": 0.01,
            "loss_weights.vq_loss": 0.25,
            "loss_weights.dqn_loss": {"low": 0.005, "high": 0.5},
            "loss_weights.mtp_loss": 0.5,
            "loss_weights.entropy_bonus": 1.0,
        },
    ),
    "quick enable": (QUICK_ENABLE, {**ARCH_FACTS, **DQN_FACTS}),
}


def values_of(loaded: LoadedConfig) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, content in loaded.config.model_dump(mode="json").items():
        if isinstance(content, dict):
            flat.update({f"{section}.{name}": value for name, value in content.items()})
    return flat


def check(loaded: LoadedConfig, facts: dict[str, Any]) -> None:
    values = values_of(loaded)
    assert {key: values[key] for key in facts} == facts
    assert {key for key, origin in loaded.origins.items() if origin != "default"} == set(facts)


@pytest.mark.parametrize("name", BLOCKS)
def test_each_block_loads_alone(tmp_path: Path, name: str) -> None:
    text, facts = BLOCKS[name]
    path = tmp_path / "config.yaml"
    path.write_text(text)
    check(load_config(path), facts)


def test_reference_blocks_load_together(tmp_path: Path) -> None:
    names = [name for name in BLOCKS if name != "quick enable"]
    path = tmp_path / "config.yaml"
    path.write_text("\n".join(BLOCKS[name][0] for name in names))
    check(load_config(path), {key: value for name in names for key, value in BLOCKS[name][1].items()})


def test_all_blocks_load_on_top_of_each_other(tmp_path: Path) -> None:
    below = None
    for number, (text, _) in enumerate(BLOCKS.values()):
        path = tmp_path / f"{number}.yaml"
        path.write_text((f"extends: {below.name}\n" if below else "") + text)
        below = path
    check(load_config(below), {key: value for _, facts in BLOCKS.values() for key, value in facts.items()})


def test_quick_enable_merges_into_the_reference_in_one_file(tmp_path: Path) -> None:
    """`model` beside `arch`, `dqn.dqn_gamma` beside `training.dqn_gamma`: equal values are no conflict."""
    quick = QUICK_ENABLE.partition("training:\n")
    text = ARCHITECTURE + quick[0] + TRAINING + quick[2] + DQN + MEMORY + LOSS_WEIGHTS
    path = tmp_path / "config.yaml"
    path.write_text(text)
    check(load_config(path), {key: value for _, facts in BLOCKS.values() for key, value in facts.items()})


def test_an_alias_that_contradicts_its_key_names_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("training:\n  dqn_gamma: 0.9\n  enable_dqn: true\ndqn:\n  gamma: 0.8\n  enabled: true\n")
    with pytest.raises(InvalidConfig) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}:5: dqn.gamma: is the same key as training.dqn_gamma ({path}:2: 0.9); got 0.8"


def test_weights_without_effect_are_said_once(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(LOSS_WEIGHTS)
    named = [note.split()[0] for note in load_config(path).notes]
    assert named == [
        "loss_weights.expansion_cost",
        "loss_weights.q_continue_loss",
        "loss_weights.vq_loss",
        "loss_weights.mtp_loss",
        "loss_weights.entropy_bonus",
    ]
    assert load_config(None).notes == []
    off = load_config(None, ["dqn.enabled=false", "loss_weights.dqn_loss=0.5"])
    assert [note.split()[0] for note in off.notes] == ["loss_weights.dqn_loss"]
    assert load_config(None, ["loss_weights.vq_loss=0"]).notes == []  # nothing was asked for
    both = ["dqn.enable_entropy_regularization=true", "dqn.entropy_regularization_weight=0.05"]
    assert load_config(None, [*both, "loss_weights.entropy_bonus=1"]).notes == []


def test_of_a_file_of_all_keys_only_what_is_no_default_was_said(tmp_path: Path) -> None:
    """As a run's config.yaml, from which the next one begins."""
    path = tmp_path / "config.yaml"
    config = load_config(None, ["loss_weights.mtp_loss=0.7"]).config
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    said = load_config(path, ["loss_weights.vq_loss=0.25"]).notes
    assert sorted(note.split()[0] for note in said) == ["loss_weights.mtp_loss", "loss_weights.vq_loss"]


@pytest.mark.parametrize(
    ("given", "note"),
    [
        (
            "dqn.enable_entropy_regularization=true",
            "dqn.enable_entropy_regularization has no effect: dqn.entropy_regularization_weight is 0",
        ),
        (
            "dqn.entropy_regularization_weight=0.05",
            "dqn.entropy_regularization_weight has no effect: dqn.enable_entropy_regularization is false",
        ),
    ],
)
def test_half_of_the_entropy_term_is_said_to_do_nothing(given: str, note: str) -> None:
    assert load_config(None, [given]).notes == [note]
