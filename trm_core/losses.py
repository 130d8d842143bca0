"""Every term of the loss of one reasoning step, and the one forward that DDP and torch.compile wrap.

Each term is a (sum over valid examples, weight) pair; the total divides by the *global* weight, so that the average
over processes that DDP takes is the global mean. Nothing is divided by the batch size again. Definitions:
docs/decision-process.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trm_core.config.schema import Config
from trm_core.data.fields import IGNORE_LABEL
from trm_core.dqn.curiosity import Curiosity
from trm_core.dqn.learner import ReplayedTargets, td_loss
from trm_core.dqn.schedules import temperature_at, weight_at
from trm_core.model.capsule_state import CapsuleState
from trm_core.model.carry import Carry
from trm_core.model.concepts import Quantised
from trm_core.model.trm import StepOutput, TinyRecursiveModel


@dataclass(frozen=True)
class Term:
    """A loss as a sum over examples and the number (or weight) of them; or several of those ([n] each), of which the
    loss is the mean of their means.
    """

    total: Tensor  # [] or [n]
    weight: Tensor  # [] or [n]

    def mean(self) -> Tensor:
        return (self.total / self.weight.clamp(min=1e-8)).mean()


@dataclass(frozen=True)
class AnswerQuality:
    """How good the answers of B rows are. All [B]."""

    loss: Tensor  # mean cross-entropy over the row's valid labels
    probability: Tensor  # mean probability of the right answer
    accuracy: Tensor  # share of right answers
    exact: Tensor  # bool: all right
    valid: Tensor  # bool: the row has a label at all


def answer_quality(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> AnswerQuality:
    """logits [B, P, V], labels [B, P] with -100 ignored."""
    valid = labels != IGNORE_LABEL
    count = valid.sum(1).clamp(min=1)
    logits = logits.float()
    flat = (logits.flatten(0, 1), labels.flatten())
    per_label = F.cross_entropy(*flat, ignore_index=IGNORE_LABEL, reduction="none", label_smoothing=label_smoothing)
    with torch.no_grad():
        safe = labels.clamp(min=0)
        probability = logits.softmax(-1).gather(-1, safe[..., None]).squeeze(-1)
        right = (logits.argmax(-1) == labels) & valid
    return AnswerQuality(
        loss=(per_label.view_as(labels) * valid).sum(1) / count,
        probability=(probability * valid).sum(1) / count,
        accuracy=right.sum(1) / count,
        exact=(right | ~valid).all(1),
        valid=valid.any(1),
    )


def row_term(values: Tensor, rows: Tensor) -> Term:
    """Sum of `values` [B] over the rows where `rows` [B] holds."""
    return Term((values * rows).sum(), rows.sum().to(values.dtype))


def halt_term(output: StepOutput, quality: AnswerQuality, labels: Tensor) -> Term:
    """BCE of the halt logit against "the answer is right" (row accuracy for several answers per row): after the last
    cycle, and after the earlier ones where rows may leave there (`output.early`).
    """

    def one(halt_logit: Tensor, accuracy: Tensor) -> Term:
        loss = F.binary_cross_entropy_with_logits(halt_logit, accuracy.to(halt_logit.dtype), reduction="none")
        return row_term(loss, quality.valid)

    terms = [one(output.halt_logit, quality.accuracy)]
    for reading in output.early:
        with torch.no_grad():
            accuracy = answer_quality(reading.logits, labels).accuracy
        terms.append(one(reading.halt_logit, accuracy))
    return Term(torch.stack([t.total for t in terms]).sum(), torch.stack([t.weight for t in terms]).sum())


def continue_term(model: TinyRecursiveModel, carry: Carry, output: StepOutput, quality: AnswerQuality) -> Term:
    """HRM's bootstrapped target (arXiv 2506.21734, section 2): what the next step, or halting there, would be worth.

        target = sigmoid(halt')                 if the next step is the last
                 sigmoid(max(halt', continue')) otherwise

    The next step is computed without gradient; this step's continue logit learns it.
    """
    with torch.no_grad():
        steps = carry.steps + 1
        following = model(output.z_H, output.z_L, carry.capsules, steps, carry.price, output.q_memory)
        assert following.continue_logit is not None
        going_on = torch.maximum(following.halt_logit, following.continue_logit)
        target = torch.where(steps >= model.max_steps, following.halt_logit, going_on).sigmoid()
    assert output.continue_logit is not None
    loss = F.binary_cross_entropy_with_logits(output.continue_logit, target, reduction="none")
    # A row at its last step has no next one.
    return row_term(loss, quality.valid & (carry.steps < model.max_steps))


def mtp_term(model: TinyRecursiveModel, output: StepOutput, labels: Tensor) -> tuple[Term, list[Term]]:
    """Multi-token prediction: the mean over depths of the cross-entropy, and each depth's accuracy.

    Depth d at position i predicts the label of position i + d: the labels are moved, so the last d positions have none.
    Every depth weighs alike, whatever its number of labels.
    """
    assert model.mtp is not None
    depths, accuracies = [], []
    for depth, logits in enumerate(model.mtp(output.z_H), start=1):
        moved = labels[:, depth:]
        valid = moved != IGNORE_LABEL
        flat = (logits.float().flatten(0, 1), moved.flatten())
        loss = F.cross_entropy(*flat, ignore_index=IGNORE_LABEL, reduction="sum")
        count = valid.sum().to(loss.dtype)
        depths.append(Term(loss, count))
        accuracies.append(Term(((logits.argmax(-1) == moved) & valid).sum().to(loss.dtype), count))
    return Term(torch.stack([t.total for t in depths]), torch.stack([t.weight for t in depths])), accuracies


def vq_term(quantised: Quantised, capsules: CapsuleState) -> Term:
    """Commitment: squared distance between z_H and its concept, over valid capsules."""
    valid = capsules.valid().float()
    return Term((quantised.distance * valid).sum(), valid.sum())


def cycle_error(model: TinyRecursiveModel, capsules: CapsuleState, output: StepOutput) -> Tensor | None:
    """[B, k] squared error of every sketch as decoded from its projected children; None without children."""
    if model.sketch_decoder is None or capsules.children is None:
        return None
    detail = model.embedding.detail(capsules.children) if output.detail is None else output.detail
    return model.sketch_decoder(model.embedding, detail, capsules.sketches)


def reconstruction_term(model: TinyRecursiveModel, carry: Carry, output: StepOutput) -> Term:
    """1 - cos(sketch_head(z_H), sketch) + MSE(checksum_head(z_H), checksum) + 0.2 * cycle, over valid capsules.

    The heads predict from z_H, so the terms have a gradient (comparing data with data has none). A cosine of one
    dimension is only a sign, so there the sketch term is the squared error.
    """
    capsules, embedding = carry.capsules, model.embedding
    valid = capsules.valid().float()
    target = (capsules.sketches - embedding.sketch_mean) * embedding.sketch_scale
    predicted = model.reconstruction.sketch(output.z_H)
    if target.shape[-1] == 1:
        per_capsule = F.mse_loss(predicted, target, reduction="none").mean(-1)
    else:
        per_capsule = 1.0 - F.cosine_similarity(predicted, target, dim=-1)
    if model.reconstruction.checksum is not None and capsules.checksums is not None:
        error = F.mse_loss(model.reconstruction.checksum(output.z_H), capsules.checksums, reduction="none").mean(-1)
        per_capsule = per_capsule + error
    cycle = cycle_error(model, capsules, output)
    if cycle is not None:
        per_capsule = per_capsule + 0.2 * cycle
    return Term((per_capsule * valid).sum(), valid.sum())


def cmi_term(model: TinyRecursiveModel, carry: Carry, quality: AnswerQuality) -> Term:
    """Squared error of the fall of the answer's loss that the cmi head had promised for the capsules just opened."""
    assert model.cmi_head is not None
    opened = carry.pending.opened
    promised = (model.cmi_head(carry.z_H, carry.x, carry.q_state, carry.capsules.mask) * opened).sum(1)
    fall = carry.loss - quality.loss.detach()
    return row_term((promised - fall).square(), opened.any(1) & quality.valid)


def entropy_term(q_values: Tensor, temperature: float) -> Term:
    """Mean entropy of softmax(q / temperature), negated: a bonus for undecided actions. Invalid actions are left in: it
    is a regulariser.
    """
    log_p = (q_values / temperature).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return Term(-entropy.sum(), torch.tensor(float(entropy.numel()), device=entropy.device))


@dataclass(frozen=True)
class StepResult:
    """One forward: the loss to differentiate, its terms, and what the decision process needs."""

    loss: Tensor
    terms: dict[str, Term]
    output: StepOutput
    quality: AnswerQuality
    td_error: Tensor | None  # of the replayed transitions, in their shape
    mtp_accuracy: list[Term] = field(default_factory=list)  # by depth


class StepLoss(nn.Module):
    """The single module that DDP and torch.compile wrap: carry (+ replayed transitions) -> all of a step's loss.

    `share_weights` turns the stacked local weights of the terms into the divisor each process must use; the identity
    for one process.
    """

    def __init__(
        self,
        model: TinyRecursiveModel,
        config: Config,
        curiosity: Curiosity | None = None,
        share_weights: Callable[[Tensor], Tensor] = lambda local: local,
    ) -> None:
        super().__init__()
        self.model = model
        self.curiosity = curiosity
        self.config = config
        self.share_weights = share_weights

    def forward(
        self, carry: Carry, replayed: ReplayedTargets | None, step: int, policy_only: bool = False
    ) -> StepResult:
        """carry: rows ready for their next step (halted ones already replaced); step: optimiser steps done.

        policy_only: the predictor is finished; only the value net, the cmi head and curiosity get a gradient, and the
        recursion keeps nothing for backward.
        """
        model, training, dqn = self.model, self.config.training, self.config.dqn
        mtp_accuracy: list[Term] = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and not policy_only):
            # carry.z_H is as it was when the capsules were chosen: the cmi head learns from what it then saw.
            z_H = model.next_z_H(carry.z_H, carry.pending.opened)
            output = model(z_H, carry.z_L, carry.capsules, carry.steps, carry.price, carry.q_memory)
            quality = answer_quality(output.logits, carry.labels, training.label_smoothing)
            terms = {
                "lm_loss": row_term(quality.loss, quality.valid),
                "q_halt_loss": halt_term(output, quality, carry.labels),
                "reconstruction_loss": reconstruction_term(model, carry, output),
            }
            if model.q_head.continue_net is not None:
                terms["q_continue_loss"] = continue_term(model, carry, output, quality)
            if output.concepts is not None:
                terms["vq_loss"] = vq_term(output.concepts, carry.capsules)
            if model.mtp is not None:
                terms["mtp_loss"], mtp_accuracy = mtp_term(model, output, carry.labels)
        if model.cmi_head is not None:
            terms["cmi_loss"] = cmi_term(model, carry, quality)
        if self.curiosity is not None:
            errors = self.curiosity.errors(model.q_head.readable(output.q_state))
            terms["rnd_loss"] = row_term(errors, torch.ones_like(errors))
        td_error = None
        if replayed is not None:
            per_transition, td_error = td_loss(model.q_head, replayed, dqn.loss)
            terms["dqn_loss"] = Term((per_transition * replayed.weight).sum(), replayed.weight.sum())
            if dqn.enable_entropy_regularization:
                q_values = model.q_head.values(replayed.state.flatten(0, -2))
                terms["entropy_bonus"] = entropy_term(q_values, temperature_at(dqn, step))
        return StepResult(self.combine(terms, step), terms, output, quality, td_error, mtp_accuracy)

    def combine(self, terms: dict[str, Term], step: int) -> Tensor:
        """Weighted sum of the terms' global means."""
        weights = torch.cat([term.weight.detach().flatten() for term in terms.values()])
        totals = torch.cat([term.total.flatten() for term in terms.values()])
        factors = [
            self.factor(name, step) / term.total.numel() for name, term in terms.items() for _ in term.total.flatten()
        ]
        return (totals * totals.new_tensor(factors) / self.share_weights(weights).clamp(min=1e-8)).sum()

    def factor(self, name: str, step: int) -> float:
        """The weight of a term at this step."""
        factor = weight_at(getattr(self.config.loss_weights, name), step / self.config.training.total_steps)
        return factor * self.config.dqn.entropy_regularization_weight if name == "entropy_bonus" else factor
