"""Run a policy over samples: every row thinks until it halts, and halted rows leave the batch.

Reads batches of capsules and writes nothing but the outcome; the model is only read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trm_core.config.schema import Config
from trm_core.data.batch import CapsuleBatch
from trm_core.data.fields import IGNORE_LABEL
from trm_core.distributed.collectives import all_rows, world_size
from trm_core.dqn.actions import Action, valid_actions
from trm_core.evaluation.policies import Policy, Situation
from trm_core.inference.engine import Latents
from trm_core.inference.restarts import Beginnings
from trm_core.losses import judge_of
from trm_core.model.q_head import largest_probability
from trm_core.model.rows import take_rows
from trm_core.model.trm import TinyRecursiveModel
from trm_core.training.episodes import capsules_of, labels_of


@dataclass(frozen=True)
class Thinking:
    """How much a row may think. max_steps: reasoning steps before HALT is forced, None: as trained; restarts: how often
    each row is thought through, each time from another beginning.
    """

    max_steps: int | None = None
    restarts: int = 1


@dataclass(frozen=True)
class Outcome:
    """What happened to each of N rows; T steps at most, P answers per row."""

    prediction: Tensor  # [N, P] in the smallest type that holds every class, because the rows of every policy are kept
    accuracy: Tensor  # [N] share of right answers
    exact: Tensor  # [N] bool
    labelled: Tensor  # [N] bool: the row has a label
    loss: Tensor  # [N] cross-entropy
    confidence: Tensor  # [N] largest probability
    opened: Tensor  # [N] capsules opened
    spent: Tensor  # [N] price units
    steps: Tensor  # [N] reasoning steps
    cycles: Tensor  # [N] high-level cycles of all steps
    actions: Tensor  # [N, T] int8; -1 after the end
    counts: Tensor  # [N, T] int32: capsules opened by each action
    halt_logit: Tensor  # [N] after the last step
    exact_at: Tensor  # [N, T] bool: all answers right after each step; after the end as at the end

    def instead(self, other: Outcome, rows: Tensor) -> Outcome:
        """This outcome, with the other one in `rows` [N]; steps and cycles are those of both."""
        shared = ("steps", "cycles")
        return Outcome(
            *(
                a + b if name in shared else torch.where(rows.view(-1, *[1] * (a.dim() - 1)), b, a)
                for name in Outcome.__dataclass_fields__
                for a, b in ((getattr(self, name), getattr(other, name)),)
            )
        )

    def finite(self) -> bool:
        """Whether every row's answer is finite. A single check, because a GPU has to be waited for."""
        return bool(torch.stack([self.loss, self.confidence, self.halt_logit]).isfinite().all())

    @staticmethod
    def join(parts: list[Outcome]) -> Outcome:
        return Outcome(*(torch.cat([getattr(p, name) for p in parts]) for name in Outcome.__dataclass_fields__))


@torch.no_grad()
def rollout(
    model: TinyRecursiveModel,
    config: Config,
    batches: Iterable[CapsuleBatch],
    policy: Policy,
    prices: Tensor,
    on_batch: Callable[[int], None] = lambda rows: None,
    thinking: Thinking | None = None,
    first: int = 0,
) -> Outcome:
    """Run `policy` on every row of `batches` (in split order) at its price level. first: the number of their first row
    among all rows that are evaluated. on_batch: told of rows that are through and, with 0, of each step.
    """
    was_training = model.training
    model.eval()
    parts = []
    for batch in batches:
        batch = batch.to(prices.device)
        parts.append(_restarted(model, config, batch, policy, prices, first, thinking or Thinking(), on_batch))
        first += len(batch)
    model.train(was_training)
    return Outcome.join(parts)


def of_all_ranks(numbers: Tensor, outcome: Outcome) -> Outcome:
    """The outcome of all rows in their order, from each rank's own outcome and the numbers [n] of its rows."""
    if world_size() == 1:
        return outcome
    order = all_rows(numbers).argsort()

    def of_all(values: Tensor) -> Tensor:
        # As bytes in host memory, because no backend exchanges every type.
        own = values.cpu().contiguous().view(-1).view(torch.uint8)
        together = all_rows(own).view(values.dtype).view(-1, *values.shape[1:])
        return together[order].to(values.device)

    return Outcome(*(of_all(getattr(outcome, name)) for name in Outcome.__dataclass_fields__))


def _restarted(
    model: TinyRecursiveModel,
    config: Config,
    batch: CapsuleBatch,
    policy: Policy,
    prices: Tensor,
    first: int,
    thinking: Thinking,
    on_batch: Callable[[int], None],
) -> Outcome:
    """Think every row through from each of its beginnings and keep the answer with the highest halt logit. Capsules
    that several of them open are paid once.
    """
    best: Outcome | None = None
    expanded = torch.zeros(len(batch), len(prices), dtype=torch.bool, device=prices.device)
    for latents in Beginnings(model, thinking.restarts).latents:
        one, opened = _rollout_batch(model, config, batch, policy, prices, first, thinking.max_steps, latents, on_batch)
        best = one if best is None else best.instead(one, one.halt_logit > best.halt_logit)
        expanded |= opened
        on_batch(len(batch))
    assert best is not None
    return replace(best, opened=expanded.sum(1), spent=(expanded * prices).sum(1))


def _rollout_batch(
    model: TinyRecursiveModel,
    config: Config,
    batch: CapsuleBatch,
    policy: Policy,
    prices: Tensor,
    first: int,
    max_steps: int | None,
    latents: Latents | None,
    on_batch: Callable[[int], None],
) -> tuple[Outcome, Tensor]:
    """The outcome, and the capsules [B, k] that it opened."""
    device = prices.device
    rows, T = len(batch), max_steps or config.arch.max_steps
    if model.data.num_children == 0 and not model.data.tokens:
        batch = replace(batch, children=None)  # for a model that opens nothing, whatever its data hold
    capsules = capsules_of(batch, prices)
    capsules = capsules.opened(policy.open_first(capsules))
    labels = labels_of(batch)
    z_H, z_L = model.first_latents(rows)
    if latents is not None:
        z_H, z_L = (z.expand(rows, *z.shape) for z in latents)
    q_memory = model.first_q_memory(rows)
    price = torch.full((rows,), policy.price, device=device)
    active = torch.arange(rows, device=device)
    logits = torch.zeros(rows, model.data.answers, model.data.num_classes, device=device)
    confidence, steps = torch.zeros(rows, device=device), torch.zeros(rows, dtype=torch.int64, device=device)
    cycles = torch.zeros_like(steps)
    expanded = capsules.expanded.clone()
    actions = torch.full((rows, T), -1, dtype=torch.int8, device=device)
    counts = torch.zeros(rows, T, dtype=torch.int32, device=device)
    halt_logit = torch.zeros(rows, device=device)
    exact_at = torch.zeros(rows, T, dtype=torch.bool, device=device)
    for t in range(T):
        on_batch(0)  # a step of large rows takes long enough to be asked to stop meanwhile
        done = torch.full_like(active, t + 1)
        # Steps beyond those of training look to the model like its last one.
        seen_as = done.clamp(max=model.max_steps)
        output = model(z_H, z_L, capsules, seen_as, price[active], q_memory)
        valid = valid_actions(capsules, done, T, model.q_head.num_actions, config.dqn.budget)
        action, opened = policy.decide(Situation(model, config.dqn, output, capsules, done, active + first, valid))
        actions[active, t] = action.to(torch.int8)
        counts[active, t] = opened.sum(1).to(torch.int32)
        logits[active] = output.logits.float()
        confidence[active] = largest_probability(output.q_state)
        steps[active] = t + 1
        halt_logit[active] = output.halt_logit
        wrong = (output.logits.argmax(-1) != labels[active]) & (labels[active] != IGNORE_LABEL)
        exact_at[active, t:] = ~wrong.any(1, keepdim=True)
        cycles[active] += output.cycles
        capsules = capsules.opened(opened)
        expanded[active] = capsules.expanded
        keep = (action != Action.HALT).nonzero().squeeze(1)
        if len(keep) == 0:
            break
        active, capsules = active[keep], take_rows(capsules, keep)
        z_H, z_L = model.next_z_H(output.z_H[keep], opened[keep]), output.z_L[keep]
        q_memory = output.q_memory[keep]
    quality = judge_of(model)(logits, labels)
    outcome = Outcome(
        prediction=logits.argmax(-1).to(_smallest_type(model.data.num_classes)),
        accuracy=quality.accuracy,
        exact=quality.exact,
        labelled=quality.valid,
        loss=quality.loss,
        confidence=confidence,
        opened=expanded.sum(1),
        spent=(expanded * prices).sum(1),
        steps=steps,
        cycles=cycles,
        actions=actions,
        counts=counts,
        halt_logit=halt_logit,
        exact_at=exact_at,
    )
    return outcome, expanded


def _smallest_type(classes: int) -> torch.dtype:
    """The smallest integer type that holds 0 .. classes - 1, of those that torch computes with everywhere."""
    types = (torch.uint8, torch.int16, torch.int32)
    return next((one for one in types if classes - 1 <= torch.iinfo(one).max), torch.int64)
