"""What changes once per step without a gradient: memory bank, concept codebook, worth of openings.

Called after the update, so a skipped step changes nothing. Every rank does the same with the rows of all ranks, so
these stay the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from trm_core.config.schema import Config
from trm_core.distributed.collectives import all_rows, all_sum
from trm_core.losses import StepResult
from trm_core.model.carry import Carry
from trm_core.model.memory import WriteCounts
from trm_core.model.q_head import pool_tokens
from trm_core.model.trm import TinyRecursiveModel
from trm_core.training.episodes import Decision


@dataclass(frozen=True)
class Upkeep:
    """What was done, for the metrics."""

    memory: WriteCounts | None = None
    memory_reads: Tensor | None = None  # [] slots read by this rank's step
    concepts: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def keep_up(
    model: TinyRecursiveModel, config: Config, carry: Carry, result: StepResult, decision: Decision, step: int
) -> Upkeep:
    """carry: as the forward of this step read it; decision: the one taken after it."""
    if model.opening_worth is not None:
        observe_openings(model, carry, result)
    memory = reads = None
    if model.memory is not None:
        reads = model.memory.pending.sum()
        memory = remember(model, config, carry, result, decision, step)
    concepts: dict[str, float] = {}
    quantised = result.output.concepts
    if model.concepts is not None and quantised is not None and model.training:
        model.concepts.update(*quantised.rows(), step, config.training.seed)
        found = model.concepts.statistics(quantised.ids)
        concepts = {"concept_perplexity": found.perplexity, "concept_usage": found.used, "concept_dead": found.dead}
    return Upkeep(memory, reads, concepts)


def observe_openings(model: TinyRecursiveModel, carry: Carry, result: StepResult) -> None:
    """Share the measured fall of the loss among the capsules that were opened before it."""
    assert model.opening_worth is not None
    opened = (carry.pending.opened & result.quality.valid[:, None]).double()
    fall = (carry.loss - result.quality.loss.detach()).double()
    share = opened / opened.sum(1, keepdim=True).clamp(min=1.0)
    total, count = all_sum(torch.stack([(share * fall[:, None]).sum(0), share.sum(0)]))
    model.opening_worth.observe(total, count)


def remember(
    model: TinyRecursiveModel, config: Config, carry: Carry, result: StepResult, decision: Decision, step: int
) -> WriteCounts | None:
    """Write the states of rows that halted with enough reward to the memory bank."""
    assert model.memory is not None
    if not model.training:
        return None  # the predictor is finished, and the bank is part of it
    worthy = decision.ended & (decision.terminal >= config.memory.reward_threshold)
    states = pool_tokens(result.output.z_H.detach(), carry.capsules.mask, 1)
    return model.memory.write(all_rows(states[worthy]), all_rows(decision.terminal[worthy]), step)
