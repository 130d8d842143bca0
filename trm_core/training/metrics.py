"""Metrics: one registry of names with meanings, and (sum, weight) accumulation between two log lines.

The training loop adds sums and weights; nothing is ever a mean of means. Values leave the device once per log line.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """What a logged number means."""

    meaning: str
    unit: str = ""


METRICS: dict[str, Metric] = {
    "train/loss": Metric("weighted sum of all terms"),
    "train/lm_loss": Metric("cross-entropy of the answer", "nats"),
    "train/q_halt_loss": Metric("binary cross-entropy of the halt logit against 'the answer is right'", "nats"),
    "train/reconstruction_loss": Metric("how badly sketches and checksums are predicted from z_H"),
    "train/cmi_loss": Metric("squared error of the promised fall of the loss after an opening", "nats^2"),
    "train/dqn_loss": Metric("TD loss of replayed transitions; 0 until the buffer has dqn.buffer_min_size"),
    "train/entropy_bonus": Metric("negative entropy of softmax(Q)", "nats"),
    "train/accuracy": Metric("share of right answers over all reasoning steps", "share"),
    "train/exact_accuracy": Metric("share of rows with every answer right", "share"),
    "train/final_accuracy": Metric("share of right answers of rows that halted", "share"),
    "train/dqn_reward_mean": Metric("mean reward as paid"),
    "train/dqn_reward_scale": Metric("running standard deviation that rewards are divided by"),
    "train/dqn_epsilon": Metric("exploration rate", "share"),
    "train/dqn_q_mean": Metric("mean Q-value of the states just seen, in scaled rewards"),
    "train/dqn_td_error_mean": Metric("mean absolute TD error of the replayed transitions"),
    "train/dqn_buffer_size": Metric("complete transitions in the buffer"),
    "train/action_0_continue": Metric("rows that chose CONTINUE", "share"),
    "train/action_1_halt": Metric("rows that chose HALT", "share"),
    "train/action_2_expand": Metric("rows that chose EXPAND", "share"),
    "train/action_expand_pct": Metric("rows that chose EXPAND", "percent"),
    "train/q_expand_mean": Metric("mean Q-value of EXPAND"),
    "train/num_expansions": Metric("capsules open in rows that halted"),
    "train/expansion_cost": Metric("price units spent by rows that halted"),
    "train/ponder_cost": Metric("reasoning steps of rows that halted"),
    "train/grad_norm": Metric("gradient norm of the model before clipping"),
    "train/policy_grad_norm": Metric("gradient norm of the value net and cmi head before clipping"),
    "train/lr": Metric("learning rate of the first group"),
    "train/step": Metric("optimiser steps done"),
    "train/epoch": Metric("passes over the training split"),
    "train/steps_per_sec": Metric("optimiser steps per second", "1/s"),
    "eval/accuracy": Metric("share of right answers of the learned policy", "share"),
    "eval/exact_accuracy": Metric("share of rows with every answer right", "share"),
    "eval/loss": Metric("cross-entropy of the final answers", "nats"),
    "eval/opened": Metric("capsules opened per sample"),
    "eval/spent": Metric("price units paid per sample"),
    "eval/steps": Metric("reasoning steps per sample"),
}


class Averages:
    """Weighted means of named numbers since the last `take`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, total: Tensor, weight: Tensor | float) -> None:
        """Add a sum over `weight` examples."""
        pair = torch.stack([total.detach().double(), torch.as_tensor(weight, dtype=torch.float64, device=total.device)])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def add_mean(self, name: str, values: Tensor) -> None:
        """Add every element of `values`."""
        self.add(name, values.detach().double().sum(), float(values.numel()))

    def take(self) -> dict[str, float]:
        """The means, and start anew. Names that saw no example are left out."""
        if not self._sums:
            return {}
        pairs = torch.stack(list(self._sums.values())).tolist()
        means = {name: total / weight for name, (total, weight) in zip(self._sums, pairs, strict=True) if weight > 0}
        self._sums = {}
        return means
