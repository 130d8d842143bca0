"""The tiny recursive model: one reasoning step of B rows, which are capsules or puzzles.

Unusual here: the capsules are embedded anew at every step, so an opened capsule reaches the model at the next step and
the number of positions never changes; every head reads z_H; the Q-values see one state vector and send no gradient
back; in evaluation a row may leave the high-level cycles early, and rows that have left are no longer computed. Reads a
`CapsuleState`, returns a `StepOutput`; knows nothing of actions, rewards or losses.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from trm_core.config.schema import Config
from trm_core.model.capsule_state import CapsuleState
from trm_core.model.concepts import ConceptVocabulary, Quantised
from trm_core.model.data_shape import DataShape
from trm_core.model.elementwise import rms_norm
from trm_core.model.embedding import CapsuleEmbedding, SketchDecoder
from trm_core.model.heads import AnswerHead, CMIHead, MTPHead, OpeningWorth, ReconstructionHeads
from trm_core.model.initialise import initialise
from trm_core.model.layers import attention_bias
from trm_core.model.memory import MemoryBank
from trm_core.model.q_head import QHead, build_q_state
from trm_core.model.recursion import Recursion
from trm_core.model.rows import take_rows
from trm_core.model.token_embedding import TokenEmbedding, prefix_length


@dataclass(frozen=True)
class Reading:
    """What the heads read from one z_H."""

    logits: Tensor  # [B, P, V]
    halt_logit: Tensor  # [B]
    q_state: Tensor  # [B, S], attached to the trunk
    continue_logit: Tensor | None = None  # [B] HRM's, if enabled


@dataclass(frozen=True)
class StepOutput:
    """What one reasoning step leaves behind. z_H, logits, halt_logit, `early` and `detail` carry gradient."""

    z_H: Tensor  # [B, K, hidden]; K = k capsules, or the prefix and the k tokens of a puzzle
    z_L: Tensor  # [B, K, hidden]
    x: Tensor  # [B, K, hidden]
    logits: Tensor  # [B, P, V]
    halt_logit: Tensor  # [B]
    q_state: Tensor  # [B, S]
    q_values: Tensor  # [B, A]
    q_memory: Tensor  # [B, recurrent width] what a recurrent Q-head remembers
    cycles: Tensor  # [B] int64: high-level cycles done
    continue_logit: Tensor | None = None  # [B]
    early: list[Reading] = field(default_factory=list)  # after every cycle but the last, where adaptive H is trained
    concepts: Quantised | None = None  # of the last cycle
    detail: Tensor | None = None  # [B, k, hidden] of all children, open or not; only in training, for the cycle term


class TinyRecursiveModel(nn.Module):
    """Recursion, embedding and heads."""

    first_z_H: Tensor
    first_z_L: Tensor

    def __init__(self, config: Config, data: DataShape, *, with_cmi: bool) -> None:
        super().__init__()
        arch = config.arch
        self.data = data
        self.max_steps = arch.max_steps
        self.restart_on_expand = arch.restart_on_expand
        self.halt_gradient = config.training.halt_gradient
        self.hierarchy = arch.hierarchy_bias if arch.enable_hierarchical_attention else None
        self.halt_above = arch.halt_threshold
        self.leave_above = arch.hcycle_confidence_threshold if arch.enable_adaptive_hcycles else None
        self.price_level = price_level(config, data)
        self.probabilities = arch.probabilities
        prefix = prefix_length(arch, data)
        self.positions = prefix + data.num_capsules  # K
        self.embedding = TokenEmbedding(arch, data) if data.tokens else CapsuleEmbedding(arch, data)
        self.recursion = Recursion(arch, config.training, self.positions)
        self.memory = MemoryBank(config.memory, arch.hidden_size) if config.memory.enabled else None
        self.concepts: ConceptVocabulary | None = None
        if arch.enable_concepts:
            # `auto` is settled by trm_core.training.features before a model is made.
            assert isinstance(arch.num_concepts, int), arch.num_concepts
            width = arch.hidden_size if arch.concept_dim == "auto" else arch.concept_dim
            self.concepts = ConceptVocabulary(
                arch.hidden_size, arch.num_concepts, width, arch.concept_mix, arch.concept_decay
            )
        self.answer = AnswerHead(arch, data, prefix)
        self.mtp = MTPHead(arch, data, prefix) if arch.enable_mtp else None
        self.reconstruction = None if data.tokens else ReconstructionHeads(arch, data)
        self.sketch_decoder = SketchDecoder(arch, data) if data.num_children else None
        self.q_head = QHead(arch, self.price_level, config.dqn.price_spread)
        self.cmi_head = CMIHead(arch) if with_cmi else None
        self.opening_worth = OpeningWorth(data.num_capsules) if data.num_children else None
        self.register_buffer("first_z_H", torch.empty(arch.hidden_size))
        self.register_buffer("first_z_L", torch.empty(arch.hidden_size))
        initialise(self, arch)

    def first_latents(self, rows: int) -> tuple[Tensor, Tensor]:
        """Initial z_H and z_L: [rows, K, hidden] each."""
        shape = (rows, self.positions, -1)
        return self.first_z_H.expand(*shape), self.first_z_L.expand(*shape)

    def next_z_H(self, z_H: Tensor, opened: Tensor) -> Tensor:
        """z_H [B, K, hidden] that a step starts from; `opened` [B, k]: capsules opened after the previous step.

        With `arch.restart_on_expand`, z_H starts over in rows that opened something and only z_L goes on: if z_H is
        kept, an answer that has settled on the sketches hardly responds to detail that comes later (measured in
        docs/decision-process.md).
        """
        if not self.restart_on_expand:
            return z_H
        return torch.where(opened.any(1)[:, None, None], self.first_z_H.to(z_H.dtype), z_H)

    def first_q_memory(self, rows: int) -> Tensor:
        """The memory of a recurrent Q-head before the first step: [rows, recurrent width] zeros."""
        return self.first_z_H.new_zeros(rows, self.q_head.recurrent_width)

    def forward(
        self,
        z_H: Tensor,
        z_L: Tensor,
        capsules: CapsuleState,
        steps: Tensor,
        price: Tensor,
        q_memory: Tensor | None = None,
    ) -> StepOutput:
        """One reasoning step.

        z_H, z_L [B, K, hidden] and q_memory [B, recurrent width] (None: nothing yet) from the step before; steps [B]
        int64, steps done including this one; price [B], the price level of each row's episode.
        """
        if q_memory is None:
            q_memory = self.first_q_memory(len(steps))
        x, detail = self.embed(capsules)
        if self.leave_above is not None and not self.training and not torch.is_grad_enabled():
            return self._forward_adaptively(z_H, z_L, x, capsules, steps, price, q_memory)
        quantised: Quantised | None = None

        def refine(z: Tensor) -> Tensor:
            nonlocal quantised
            z, quantised = self.refine(z, capsules.mask)
            return z

        halts_early = self.leave_above is not None and self.training
        (*before, z_H), z_L = self.recursion(z_H, z_L, x, self.attention_bias(capsules), refine, every=halts_early)
        early = [self.read(z, capsules, steps, price, q_memory) for z in before]
        now = self.read(z_H, capsules, steps, price, q_memory)
        cycles = torch.full_like(steps, self.recursion.H_cycles)
        output = self._output(z_H, z_L, x, now, cycles, early, quantised)
        return replace(output, detail=detail)

    def _forward_adaptively(
        self,
        z_H: Tensor,
        z_L: Tensor,
        x: Tensor,
        capsules: CapsuleState,
        steps: Tensor,
        price: Tensor,
        q_memory: Tensor,
    ) -> StepOutput:
        """A step in which rows that are sure enough leave the high-level cycles; the rest go on as a smaller batch."""
        assert self.leave_above is not None
        rows = torch.arange(len(steps), device=steps.device)
        final: list[Tensor] = []
        cycles = torch.zeros_like(steps)
        here, z_H_here, z_L_here, x_here = capsules, z_H, z_L, x
        for number in range(1, self.recursion.H_cycles + 1):
            z_H_here, z_L_here = self.recursion.cycle(z_H_here, z_L_here, x_here, self.attention_bias(here))
            z_H_here, _ = self.refine(z_H_here, here.mask)
            now = self.read(z_H_here, here, steps[rows], price[rows], q_memory[rows])
            found = [z_H_here, z_L_here, now.logits, now.halt_logit, now.q_state]
            if now.continue_logit is not None:
                found.append(now.continue_logit)
            # The first cycle sees every row; later ones overwrite the rows that went on.
            final = (
                found if not final else [old.index_copy(0, rows, new) for old, new in zip(final, found, strict=True)]
            )
            cycles[rows] = number
            going_on = (now.halt_logit <= self.leave_above).nonzero().squeeze(1)
            if len(going_on) == 0:
                break
            if len(going_on) < len(rows):
                rows, here = rows[going_on], take_rows(here, going_on)
                z_H_here, z_L_here, x_here = z_H_here[going_on], z_L_here[going_on], x_here[going_on]
        return self._output(final[0], final[1], x, Reading(*final[2:]), cycles, [], None)

    def forward_masked(
        self,
        z_H: Tensor,
        z_L: Tensor,
        capsules: CapsuleState,
        steps: Tensor,
        price: Tensor,
        q_memory: Tensor,
    ) -> StepOutput:
        """`forward` in evaluation without data-dependent branches, for exported graphs: all rows do every cycle, and
        those that have left keep what they had.
        """
        x, bias = self.embed(capsules)[0], self.attention_bias(capsules)
        cycles, left = torch.ones_like(steps), torch.zeros_like(steps, dtype=torch.bool)
        for number in range(self.recursion.H_cycles):
            next_H, next_L = self.recursion.cycle(z_H, z_L, x, bias)
            next_H, _ = self.refine(next_H, capsules.mask)
            if number:
                cycles = cycles + ~left
                next_H, next_L = (
                    torch.where(left[:, None, None], old, new) for old, new in ((z_H, next_H), (z_L, next_L))
                )
            z_H, z_L = next_H, next_L
            if self.leave_above is not None and number + 1 < self.recursion.H_cycles:
                left = left | (self.read(z_H, capsules, steps, price, q_memory).halt_logit > self.leave_above)
        now = self.read(z_H, capsules, steps, price, q_memory)
        return self._output(z_H, z_L, x, now, cycles, [], None)

    def _output(
        self,
        z_H: Tensor,
        z_L: Tensor,
        x: Tensor,
        now: Reading,
        cycles: Tensor,
        early: list[Reading],
        quantised: Quantised | None,
    ) -> StepOutput:
        with torch.no_grad():
            q_values, q_memory = self.q_head.read(now.q_state)
        return StepOutput(
            z_H=z_H,
            z_L=z_L,
            x=x,
            logits=now.logits,
            halt_logit=now.halt_logit,
            q_state=now.q_state.detach(),
            q_values=q_values,
            q_memory=q_memory,
            cycles=cycles,
            continue_logit=now.continue_logit,
            early=early,
            concepts=quantised,
        )

    def embed(self, capsules: CapsuleState) -> tuple[Tensor, Tensor | None]:
        """x [B, K, hidden], and in training the detail of all children [B, k, hidden], if there are any."""
        if isinstance(self.embedding, TokenEmbedding):
            return self.embedding(capsules), None
        detail = None
        if self.training and self.sketch_decoder is not None and capsules.children is not None:
            # The cycle term needs the detail of every capsule; projecting the open ones apart would cost as much again.
            detail = self.capsule_embedding.detail(capsules.children)
        return self.embedding(capsules, detail), detail

    @property
    def capsule_embedding(self) -> CapsuleEmbedding:
        """The embedding of a model that reads capsules."""
        assert isinstance(self.embedding, CapsuleEmbedding)
        return self.embedding

    def position_mask(self, capsules: CapsuleState) -> Tensor:
        """[B, K] bool: positions of z_H that are not padding."""
        if self.positions == self.data.num_capsules:
            return capsules.valid()
        return torch.ones(capsules.rows, self.positions, dtype=torch.bool, device=capsules.sketches.device)

    def attention_bias(self, capsules: CapsuleState) -> Tensor | None:
        """What every attention adds to its logits: hidden padding and, where enabled, the hierarchy."""
        if self.hierarchy is None:
            return attention_bias(capsules.mask, None, None)
        return attention_bias(capsules.mask, capsules.parents, self.hierarchy)

    def refine(self, z_H: Tensor, mask: Tensor | None) -> tuple[Tensor, Quantised | None]:
        """Applied to z_H after every high-level cycle: add what the memory bank retrieves, pull towards concepts."""
        quantised = None
        if self.memory is not None:
            # Without the norm, z_H would grow with every read and x would weigh less and less beside it.
            z_H = rms_norm(z_H + self.memory.read(z_H))
        if self.concepts is not None:
            z_H, quantised = self.concepts(z_H, mask)
        return z_H, quantised

    def read(self, z_H: Tensor, capsules: CapsuleState, steps: Tensor, price: Tensor, q_memory: Tensor) -> Reading:
        """Answer, state and halt logit of one z_H."""
        logits = self.answer(z_H, capsules.mask)
        pooled = self.q_head.pool(z_H, capsules.mask)
        state = build_q_state(
            pooled,
            capsules.mask,
            logits,
            steps / self.max_steps,
            capsules.spent / self.data.total_price,
            price.log(),
            self.probabilities,
        )
        state = torch.cat([q_memory, state], 1)
        halt_input = self.halt_input(state, pooled.shape[1])
        going_on = None if self.q_head.continue_net is None else self.q_head.continue_logit(halt_input)
        return Reading(logits, self.q_head.halt_logit(halt_input), state, going_on)

    def halt_input(self, state: Tensor, pooled_width: int) -> Tensor:
        """The state as the halt and continue nets read it: only the pooled z_H passes a gradient (none does with
        `halt_gradient: head`), so that these nets cannot move the answer by way of its confidence.
        """
        if self.halt_gradient == "head":
            return state.detach()
        begin = self.q_head.recurrent_width
        parts = (state[:, :begin].detach(), state[:, begin : begin + pooled_width])
        return torch.cat([*parts, state[:, begin + pooled_width :].detach()], 1)


def price_level(config: Config, data: DataShape) -> float:
    """The middle price level: reward per price unit. Prices are per capsule; the config gives it per child."""
    level = config.dqn.expansion_cost_per_child * max(data.num_children, 1)
    # The level enters the state as a logarithm, so "free" is a very small price.
    return max(level, 1e-6)
