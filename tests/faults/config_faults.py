"""Faults that a config can have. Each changes settings of the base run."""

from __future__ import annotations

from typing import Any

from tests.faults.plan import Fault, Plan
from trm_core.training import episodes


def expansion_off(plan: Plan) -> None:
    """Expansion is switched off: severities do not differ."""
    plan.settings |= {"arch.enable_capsule_expansion": False, "dqn.enabled": True}


def two_actions(plan: Plan) -> None:
    """In the resolved config of a run this is indistinguishable from expansion that was switched off."""
    plan.settings |= {
        "arch.q_head_num_actions": 2,
        "arch.enable_capsule_expansion": False,
        "dqn.enabled": True,
    }


def buffer_min_size(plan: Plan) -> None:
    """The buffer must hold too many transitions before learning starts; about one per row and step is stored."""
    stored = plan.steps * int(plan.settings["training.global_batch_size"])
    least = round(stored * plan.of(0.5, 0.8, 3.0))
    plan.settings |= {"dqn.buffer_min_size": least, "dqn.buffer_capacity": least + stored}


def epsilon_zero(plan: Plan) -> None:
    start = plan.of(0.05, 0.01, 0.0)
    plan.settings |= {"dqn.epsilon_start": start, "dqn.epsilon_end": 0.0, "dqn.halt_exploration": start}


def expansion_price(plan: Plan) -> None:
    plan.settings["dqn.expansion_cost_per_child"] = plan.of(0.05, 0.5, 5.0)


def target_frozen(plan: Plan) -> None:
    plan.settings |= {
        "dqn.target_tau": None,
        "dqn.target_update_freq": round(plan.steps * plan.of(0.4, 0.8, 40.0)),
    }


def rewards_zero(plan: Plan) -> None:
    """Mild: HALT pays nothing. Middle: every term that the config knows is zero. Severe: so is the rise of u."""
    plan.settings |= {"dqn.reward_terminal_correct": 0.0, "dqn.reward_terminal_incorrect": 0.0}
    if plan.severity > 0:
        plan.settings |= {
            "dqn.reward_step_penalty": 0.0,
            "dqn.reward_expansion_bonus": 0.0,
            "dqn.memory_reward_bonus": 0.0,
            "dqn.expansion_cost_per_child": 0.0,
        }
    if plan.severity == 2:

        def without_rise(original: Any) -> Any:
            # The states before and after are the same.
            return lambda config, before, after, *rest, **more: original(config, after, after, *rest, **more)

        plan.wrap(episodes, "step_reward", without_rise)


def lr_too_high(plan: Plan) -> None:
    factor = plan.of(10.0, 100.0, 1000.0)
    for key in ("training.base_lr", "training.muon_lr"):
        if key in plan.settings:
            plan.settings[key] *= factor


def warmup_missing(plan: Plan) -> None:
    plan.settings["training.lr_warmup_steps"] = 0
    factor = plan.of(3.0, 10.0, 30.0)
    for key in ("training.base_lr", "training.muon_lr"):
        if key in plan.settings:
            plan.settings[key] *= factor


FAULTS = (
    Fault("expansion-off", ("expansion-off", "two-actions"), expansion_off),
    Fault("two-actions", ("two-actions", "expansion-off"), two_actions),
    Fault("buffer-min-size", ("buffer-min-size",), buffer_min_size),
    Fault("epsilon-zero", ("epsilon-zero",), epsilon_zero),
    Fault("expansion-price", ("expansion-price",), expansion_price),
    Fault("target-frozen", ("target-frozen",), target_frozen),
    Fault("rewards-zero", ("rewards-zero",), rewards_zero),
    Fault("lr-too-high", ("lr-too-high",), lr_too_high),
    # A learning rate that is too high from the first step on is both.
    Fault("warmup-missing", ("warmup-missing", "lr-too-high"), warmup_missing),
)
