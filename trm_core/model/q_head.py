"""The one state the policy sees, and the head that reads it.

    q_state = [mean over valid positions of z_H, largest probability, entropy of the answer,
               step / T, price spent / price of everything, log of the price level]

The same vector is used for acting, in replay and for the target network. Two separate outputs: `values` (one per
action, learned by TD, whose gradient stays in this head) and `halt` (a logit of "the answer is right", learned by BCE).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trm_core.model.layers import MLP

NUM_SCALARS = 5


def build_q_state(
    z_H: Tensor, mask: Tensor | None, logits: Tensor, progress: Tensor, spent: Tensor, log_price: Tensor
) -> Tensor:
    """q_state [B, hidden + 5] float32.

    z_H [B, K, hidden]; mask [B, K] or None; logits [B, P, V] of P answers; progress = step / T, spent (share of the
    price of everything) and log_price (natural log of the price level), each [B]. Probability and entropy (in units of
    log V) are means over the row's valid answers.
    """
    if mask is None:
        pooled = z_H.mean(1)
    else:
        weight = mask[:, :, None].to(z_H.dtype)
        pooled = (z_H * weight).sum(1) / weight.sum(1).clamp(min=1.0)
    log_p = logits.float().log_softmax(-1)
    answers = torch.ones_like(log_p[..., 0]) if mask is None or log_p.shape[1] == 1 else mask.to(log_p.dtype)
    share = answers / answers.sum(1, keepdim=True).clamp(min=1.0)
    largest = (log_p.amax(-1).exp() * share).sum(1)
    entropy = (-(log_p.exp() * log_p).sum(-1) * share).sum(1) / math.log(max(logits.shape[-1], 2))
    return torch.cat([pooled.float(), torch.stack([largest, entropy, progress, spent, log_price], 1)], 1)


def readable(q_state: Tensor, price_level: float, price_spread: float) -> Tensor:
    """q_state rescaled for a network: near certainty, 0.99 and 0.999 are far apart in odds though not in
    probability.
    """
    pooled, scalars = q_state[:, :-NUM_SCALARS], q_state[:, -NUM_SCALARS:]
    largest, entropy, progress, spent, log_price = scalars.unbind(1)
    log_odds = torch.logit(largest, eps=1e-6) / 4.0
    log_entropy = torch.log(entropy.clamp(min=1e-6)) / 4.0 + 1.0
    price = (log_price - math.log(price_level)) / math.log(max(price_spread, 1.001))
    return torch.cat([pooled, torch.stack([log_odds, log_entropy, 2.0 * progress - 1.0, 4.0 * spent, price], 1)], 1)


class QHead(nn.Module):
    """q_state [B, S] -> values [B, A] and halt logit [B]."""

    def __init__(
        self, hidden_size: int, head_width: int, num_actions: int, price_level: float, price_spread: float
    ) -> None:
        super().__init__()
        self.num_actions = num_actions
        self.price_level, self.price_spread = price_level, price_spread
        self.value_net = MLP(hidden_size + NUM_SCALARS, head_width, num_actions)
        self.halt_net = MLP(hidden_size + NUM_SCALARS, head_width, 1)

    def values(self, q_state: Tensor) -> Tensor:
        """[B, A]. The state is detached: TD never moves the trunk."""
        return self.value_net(readable(q_state.detach(), self.price_level, self.price_spread))

    def halt_logit(self, q_state: Tensor) -> Tensor:
        """[B]"""
        return self.halt_net(readable(q_state, self.price_level, self.price_spread)).squeeze(1)
