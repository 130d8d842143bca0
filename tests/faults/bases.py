"""The two base runs in which faults are planted, and what all runs of the zoo have in common."""

from __future__ import annotations

from typing import Any

from tests.faults.capsules import built, generated
from tests.faults.plan import Base

COMMON: dict[str, Any] = {
    "arch.hidden_size": 32,
    "arch.num_layers": 2,
    "arch.num_heads": 4,
    "arch.ffn_expansion": 1.5,
    "arch.H_cycles": 1,
    "arch.L_cycles": 1,
    "arch.max_steps": 4,
    "arch.q_head_hidden_dim": 32,
    "training.threads": 1,
    "training.device": "cpu",
    "training.global_batch_size": 48,
    "training.total_steps": 200,
    "training.base_lr": 3e-3,
    "training.lr_warmup_steps": 20,
    "training.ema_decay": 0.98,
    "training.log_interval": 5,
    "training.eval_interval": 100,
    "training.checkpoint_interval": 100,
    "dqn.buffer_capacity": 3000,
    "dqn.buffer_min_size": 500,
    "dqn.batch_size": 64,
    "dqn.epsilon_decay": 120,
    "dqn.epsilon_end": 0.1,
    "dqn.lr": 1e-3,
    "dqn.gamma": 1.0,
    "dqn.target_tau": 0.03,
    "dqn.expansion_cost_per_child": 0.0005,
}

DIGITS = Base(
    "digits",
    {**COMMON, "data.source": "digits", "training.optimizer": "muon", "training.muon_lr": 0.01, "dqn.expand_count": 2},
    lambda seed: built("digits", {}),
    source=True,
)

GENERATED = Base(
    "generated",
    {
        **COMMON,
        "training.global_batch_size": 64,
        "training.optimizer": "adamw",
        "training.total_steps": 220,
        "arch.max_steps": 5,
        "arch.enable_concepts": True,
        "arch.num_concepts": 32,
        "arch.concept_decay": 0.95,
        "memory.enabled": True,
        "memory.capacity": 256,
        "memory.num_heads": 4,
        "dqn.replay": "prioritized",
        "dqn.target_tau": None,
        "dqn.target_update_freq": 20,
        "dqn.expansion_cost_per_child": 0.004,
    },
    generated,
)

BASES = {base.name: base for base in (DIGITS, GENERATED)}
