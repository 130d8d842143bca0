"""The one state the policy sees, and the head that reads it.

    q_state = [recurrent memory of the head (rnn only),
               mean of z_H over valid positions (attention: over each of a few groups of positions; linear: z_H of
               the first position),
               largest probability, entropy of the answer, step / T, price spent / price of everything,
               log of the price level]

The same vector is used for acting, in replay and for the target network. Separate outputs: `values` (one per action,
learned by TD, whose gradient stays in this head), `halt` (a logit of "the answer is right", learned by BCE) and,
where HRM's rule is wanted, `continue`.

Under a fixed policy, the value of an action falls linearly as the price rises, with what will be spent as the slope. So
the head gives a value and a spending per action, Q = value - price * spending. Both still read the price, because the
best policy changes with it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trm_core.config.schema import ArchConfig
from trm_core.model.layers import MLP
from trm_core.model.probabilities import Probabilities, log_probabilities

NUM_SCALARS = 5
_CERTAIN = 2.0**-11  # distance from 1: float16, in which replay stores states, has no number in between


def pool_tokens(z_H: Tensor, mask: Tensor | None, tokens: int) -> Tensor:
    """[B, K, hidden] -> [B, tokens * hidden]: means over the valid positions of each of `tokens` contiguous groups."""
    positions = z_H.shape[1]
    if tokens == 1 and mask is None:
        return z_H.mean(1)
    run = torch.arange(positions, device=z_H.device) * tokens // positions
    member = F.one_hot(run, tokens).T.to(z_H.dtype)  # [tokens, K]
    weight = member if mask is None else member * mask[:, None].to(z_H.dtype)  # [.., tokens, K]
    return (weight @ z_H / weight.sum(-1, keepdim=True).clamp(min=1.0)).flatten(1)


def build_q_state(
    pooled: Tensor,
    mask: Tensor | None,
    logits: Tensor,
    progress: Tensor,
    spent: Tensor,
    log_price: Tensor,
    probabilities: Probabilities = "softmax",
) -> Tensor:
    """q_state [B, pooled + 5] float32, without the head's recurrent memory.

    pooled [B, ..] of `pool_tokens`; mask [B, K] or None; logits [B, P, V] of P answers; progress = step / T, spent
    (share of the price of everything) and log_price (natural log of the price level), each [B]. Probability and
    entropy (in units of log V) are means over the row's valid answers.
    """
    log_p = log_probabilities(logits, probabilities)
    answers = torch.ones_like(log_p[..., 0]) if mask is None or log_p.shape[1] == 1 else mask.to(log_p.dtype)
    share = answers / answers.sum(1, keepdim=True).clamp(min=1.0)
    largest = (log_p.amax(-1).exp() * share).sum(1)
    entropy = (-(log_p.exp() * log_p).sum(-1) * share).sum(1) / math.log(max(logits.shape[-1], 2))
    return torch.cat([pooled.float(), torch.stack([largest, entropy, progress, spent, log_price], 1)], 1)


def largest_probability(q_state: Tensor) -> Tensor:
    """[B] the model's confidence, as its state holds it."""
    return q_state[:, -NUM_SCALARS]


class AttentionValueNet(nn.Module):
    """Values from a few pooled tokens: the scalars are the query, the tokens keys and values of an attention.

    [.., tokens * hidden + 5] -> [.., outputs].
    """

    def __init__(self, tokens: int, hidden_size: int, width: int, outputs: int) -> None:
        super().__init__()
        self.tokens, self.hidden_size = tokens, hidden_size
        self.query = nn.Linear(NUM_SCALARS, width)
        self.key_value = nn.Linear(hidden_size, 2 * width)
        self.hidden = nn.Linear(width + NUM_SCALARS, width)
        self.output = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        scalars = x[:, -NUM_SCALARS:]
        key, value = self.key_value(x[:, :-NUM_SCALARS].unflatten(1, (self.tokens, self.hidden_size))).chunk(2, -1)
        read = F.scaled_dot_product_attention(self.query(scalars)[:, None], key, value).squeeze(1)
        return self.output(F.silu(self.hidden(torch.cat([read, scalars], 1))))


class RecurrentValueNet(nn.Module):
    """Values from a GRU over the states so far. (x [B, inputs], memory [B, width]) -> memory, then values."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(inputs, width)
        self.output = nn.Linear(width, outputs)


class QHead(nn.Module):
    """q_state [B, S] -> values [B, A], halt logit [B], and the memory for the next step.

    S = `state_width`. Kinds: `linear`, whose halt and continue logits read the first position alone (TRM's); `mlp`;
    `rnn`, whose memory of the steps before is the first part of the state; `attention` over a few pooled tokens.
    """

    def __init__(self, arch: ArchConfig, price_level: float, price_spread: float) -> None:
        super().__init__()
        self.kind, self.num_actions = arch.q_head_type, arch.q_head_num_actions
        self.price_level, self.price_spread = price_level, price_spread
        self.tokens = arch.q_head_tokens if self.kind == "attention" else 1
        self.recurrent_width = arch.q_head_hidden_dim if self.kind == "rnn" else 0
        inputs, width = self.tokens * arch.hidden_size + NUM_SCALARS, arch.q_head_hidden_dim
        self.state_width = self.recurrent_width + inputs
        self.value_net: nn.Module
        if self.kind == "rnn":
            self.value_net = RecurrentValueNet(inputs, width, 2 * self.num_actions)
        elif self.kind == "attention":
            self.value_net = AttentionValueNet(self.tokens, arch.hidden_size, width, 2 * self.num_actions)
        elif self.kind == "linear":
            self.value_net = nn.Linear(inputs, 2 * self.num_actions)
        else:
            self.value_net = MLP(inputs, width, 2 * self.num_actions)

        def logit_net() -> nn.Module:
            return nn.Linear(arch.hidden_size, 1) if self.kind == "linear" else MLP(inputs, width, 1)

        self.halt_net = logit_net()
        self.continue_net = logit_net() if arch.enable_q_continue else None

    def pool(self, z_H: Tensor, mask: Tensor | None) -> Tensor:
        """The part of the state that is read from z_H [B, K, hidden]: [B, tokens * hidden]."""
        return z_H[:, 0] if self.kind == "linear" else pool_tokens(z_H, mask, self.tokens)

    def readable(self, q_state: Tensor) -> Tensor:
        """The state without the recurrent memory, rescaled as a network's input: near certainty, 0.99 and 0.999 are far
        apart in odds, though not in probability.
        """
        pooled, scalars = q_state[:, self.recurrent_width : -NUM_SCALARS], q_state[:, -NUM_SCALARS:]
        largest, entropy, progress, spent, log_price = scalars.unbind(1)
        log_odds = torch.logit(largest, eps=_CERTAIN) / 4.0
        log_entropy = torch.log(entropy.clamp(min=1e-6)) / 4.0 + 1.0
        # In units of the trained range, or of factors of e if that is narrower: another price may be asked for later.
        price = (log_price - math.log(self.price_level)) / max(math.log(self.price_spread), 1.0)
        return torch.cat([pooled, torch.stack([log_odds, log_entropy, 2.0 * progress - 1.0, 4.0 * spent, price], 1)], 1)

    def read(self, q_state: Tensor) -> tuple[Tensor, Tensor]:
        """Values [B, A] and the memory for the next step [B, recurrent_width].

        What comes from the trunk is detached, so TD never moves the trunk. The recurrent memory is not, so that the
        gradient passes through a replayed sequence.
        """
        seen = q_state.detach()
        x = self.readable(seen)
        if isinstance(self.value_net, RecurrentValueNet):
            memory = self.value_net.cell(x, q_state[:, : self.recurrent_width])
            return self.at_price(self.value_net.output(memory), seen), memory
        return self.at_price(self.value_net(x), seen), q_state[:, :0]

    def at_price(self, outputs: Tensor, q_state: Tensor) -> Tensor:
        """Q [B, A] = value - price * spending, from outputs [B, 2A]; here price is a share of the highest price."""
        value, spending = outputs.chunk(2, 1)
        price = q_state[:, -1:].exp() / (self.price_level * self.price_spread)
        return value - price * spending

    def values(self, q_state: Tensor) -> Tensor:
        """[B, A]"""
        return self.read(q_state)[0]

    def halt_logit(self, q_state: Tensor) -> Tensor:
        """[B]"""
        return self.halt_net(self.logit_input(q_state)).squeeze(1)

    def continue_logit(self, q_state: Tensor) -> Tensor:
        """[B] HRM's other logit; only where `arch.enable_q_continue`."""
        assert self.continue_net is not None
        return self.continue_net(self.logit_input(q_state)).squeeze(1)

    def logit_input(self, q_state: Tensor) -> Tensor:
        """What the halt and continue nets read of a state."""
        return q_state[:, :-NUM_SCALARS] if self.kind == "linear" else self.readable(q_state)
