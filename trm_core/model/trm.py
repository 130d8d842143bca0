"""The tiny recursive model: one reasoning step of B rows.

Unusual here: the capsules are embedded anew at every step, so an opened capsule reaches the model at the next step and
the number of positions never changes; every head reads z_H; the Q-values see one state vector and send no gradient
back. Reads a `CapsuleState`, returns a `StepOutput`; knows nothing of actions, rewards or losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trm_core.config.schema import Config
from trm_core.model.capsule_state import CapsuleState
from trm_core.model.embedding import CapsuleEmbedding, DataShape, SketchDecoder
from trm_core.model.heads import AnswerHead, CMIHead, ReconstructionHeads
from trm_core.model.initialise import initialise
from trm_core.model.layers import padding_bias
from trm_core.model.q_head import QHead, build_q_state
from trm_core.model.recursion import Recursion


@dataclass(frozen=True)
class StepOutput:
    """What one reasoning step leaves behind. z_H, logits and halt_logit carry gradient; the rest does not."""

    z_H: Tensor  # [B, k, hidden]
    z_L: Tensor  # [B, k, hidden]
    x: Tensor  # [B, k, hidden]
    logits: Tensor  # [B, P, V]
    halt_logit: Tensor  # [B]
    q_state: Tensor  # [B, S]
    q_values: Tensor  # [B, A]


class TinyRecursiveModel(nn.Module):
    """Recursion, embedding and heads."""

    first_z_H: Tensor
    first_z_L: Tensor

    def __init__(self, config: Config, data: DataShape, *, with_cmi: bool) -> None:
        super().__init__()
        arch = config.arch
        self.data = data
        self.max_steps = arch.max_steps
        self.halt_gradient = config.training.halt_gradient
        self.price_level = price_level(config, data)
        self.embedding = CapsuleEmbedding(arch, data)
        self.recursion = Recursion(arch)
        self.answer = AnswerHead(arch, data)
        self.reconstruction = ReconstructionHeads(arch, data)
        self.sketch_decoder = SketchDecoder(arch, data) if data.num_children else None
        self.q_head = QHead(
            arch.hidden_size, arch.q_head_hidden_dim, arch.q_head_num_actions, self.price_level, config.dqn.price_spread
        )
        self.cmi_head = CMIHead(arch) if with_cmi else None
        self.register_buffer("first_z_H", torch.empty(arch.hidden_size))
        self.register_buffer("first_z_L", torch.empty(arch.hidden_size))
        initialise(self, arch)

    def first_latents(self, rows: int) -> tuple[Tensor, Tensor]:
        """z_H and z_L of rows that have not begun: [rows, k, hidden] each."""
        shape = (rows, self.data.num_capsules, -1)
        return self.first_z_H.expand(*shape), self.first_z_L.expand(*shape)

    def forward(self, z_H: Tensor, z_L: Tensor, capsules: CapsuleState, steps: Tensor, price: Tensor) -> StepOutput:
        """One reasoning step.

        z_H, z_L [B, k, hidden] from the step before; steps [B] int64, steps done including this one; price [B], the
        price level of each row's episode.
        """
        x = self.embedding(capsules)
        z_H, z_L = self.recursion(z_H, z_L, x, padding_bias(capsules.mask))
        logits = self.answer(z_H, capsules.mask)
        q_state = build_q_state(
            z_H,
            capsules.mask,
            logits,
            steps / self.max_steps,
            capsules.spent / self.data.total_price,
            price.log(),
        )
        # The confidence features are inputs of the halt head, not a way to move the answer.
        halt_input = torch.cat([q_state[:, : z_H.shape[-1]], q_state[:, z_H.shape[-1] :].detach()], 1)
        if self.halt_gradient == "head":
            halt_input = halt_input.detach()
        with torch.no_grad():
            q_values = self.q_head.values(q_state)
        return StepOutput(z_H, z_L, x, logits, self.q_head.halt_logit(halt_input), q_state.detach(), q_values)


def price_level(config: Config, data: DataShape) -> float:
    """The middle price level: reward per price unit. Prices are per capsule; the config gives it per child."""
    level = config.dqn.expansion_cost_per_child * max(data.num_children, 1)
    # The level enters the state as a logarithm, so "free" is a very small price.
    return max(level, 1e-6)
