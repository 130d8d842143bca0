"""Every term of the loss of one reasoning step, and the one forward that DDP and torch.compile wrap.

Each term is a (sum over valid examples, weight) pair; the total divides by the *global* weight, so that the average
over processes that DDP takes is the global mean. Nothing is divided by the batch size again. Definitions:
docs/decision-process.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trm_core.config.schema import Config, WeightRange
from trm_core.data.fields import IGNORE_LABEL
from trm_core.dqn.learner import ReplayedTargets, td_loss
from trm_core.model.carry import Carry
from trm_core.model.trm import StepOutput, TinyRecursiveModel


@dataclass(frozen=True)
class Term:
    """A loss as a sum over examples and the number (or weight) of them."""

    total: Tensor
    weight: Tensor

    def mean(self) -> Tensor:
        return self.total / self.weight.clamp(min=1e-8)


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


def halt_term(halt_logit: Tensor, quality: AnswerQuality) -> Term:
    """BCE of the halt logit against "the answer is right" (row accuracy for several answers per row)."""
    target = quality.accuracy.to(halt_logit.dtype)
    return row_term(F.binary_cross_entropy_with_logits(halt_logit, target, reduction="none"), quality.valid)


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
    if model.sketch_decoder is not None and capsules.children is not None:
        per_capsule = per_capsule + 0.2 * model.sketch_decoder(embedding, capsules.children, capsules.sketches)
    return Term((per_capsule * valid).sum(), valid.sum())


def cmi_term(model: TinyRecursiveModel, carry: Carry, quality: AnswerQuality) -> Term:
    """Squared error of the fall of the answer's loss that the cmi head had promised for the capsules just opened."""
    assert model.cmi_head is not None
    opened = carry.pending.opened
    promised = (model.cmi_head(carry.z_H, carry.x, carry.q_state) * opened).sum(1)
    fall = carry.loss - quality.loss.detach()
    return row_term((promised - fall).square(), opened.any(1) & quality.valid)


def entropy_term(q_values: Tensor) -> Term:
    """Mean entropy of softmax(q), negated: a bonus for undecided actions. Invalid actions are left in: it is a
    regulariser.
    """
    log_p = q_values.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return Term(-entropy.sum(), torch.tensor(float(len(entropy)), device=entropy.device))


def scheduled(weight: float | WeightRange, progress: float) -> float:
    """A weight at `progress` (0 to 1) of training; a range rises linearly from low to high."""
    if isinstance(weight, WeightRange):
        return weight.low + (weight.high - weight.low) * min(max(progress, 0.0), 1.0)
    return weight


@dataclass(frozen=True)
class StepResult:
    """One forward: the loss to differentiate, its terms, and what the decision process needs."""

    loss: Tensor
    terms: dict[str, Term]
    output: StepOutput
    quality: AnswerQuality
    td_error: Tensor | None  # [n] of the replayed transitions


class StepLoss(nn.Module):
    """The single module that DDP and torch.compile wrap: carry (+ replayed transitions) -> all of a step's loss.

    `share_weights` turns the stacked local weights of the terms into the divisor each process must use; the identity
    for one process.
    """

    def __init__(
        self, model: TinyRecursiveModel, config: Config, share_weights: Callable[[Tensor], Tensor] = lambda local: local
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.share_weights = share_weights

    def forward(
        self, carry: Carry, replayed: ReplayedTargets | None, progress: float, policy_only: bool = False
    ) -> StepResult:
        """carry: rows ready for their next step (halted ones already replaced); progress: share of training done.

        policy_only: the predictor is finished; only the value net and the cmi head get a gradient, and the recursion
        keeps nothing for backward.
        """
        model, training = self.model, self.config.training
        with torch.set_grad_enabled(torch.is_grad_enabled() and not policy_only):
            output = model(carry.z_H, carry.z_L, carry.capsules, carry.steps, carry.price)
            quality = answer_quality(output.logits, carry.labels, training.label_smoothing)
            terms = {
                "lm_loss": row_term(quality.loss, quality.valid),
                "q_halt_loss": halt_term(output.halt_logit, quality),
                "reconstruction_loss": reconstruction_term(model, carry, output),
            }
        if model.cmi_head is not None:
            terms["cmi_loss"] = cmi_term(model, carry, quality)
        td_error = None
        if replayed is not None:
            per_transition, td_error = td_loss(model.q_head, replayed, self.config.dqn.loss)
            terms["dqn_loss"] = Term((per_transition * replayed.weight).sum(), replayed.weight.sum())
            if self.config.dqn.enable_entropy_regularization:
                terms["entropy_bonus"] = entropy_term(model.q_head.values(replayed.state))
        return StepResult(self.combine(terms, progress), terms, output, quality, td_error)

    def combine(self, terms: dict[str, Term], progress: float) -> Tensor:
        """Weighted sum of the terms' global means."""
        divisors = self.share_weights(torch.stack([term.weight.detach() for term in terms.values()])).clamp(min=1e-8)
        factors = [self.factor(name, progress) for name in terms]
        totals = torch.stack([term.total for term in terms.values()])
        return (totals * totals.new_tensor(factors) / divisors).sum()

    def factor(self, name: str, progress: float) -> float:
        factor = scheduled(getattr(self.config.loss_weights, name), progress)
        return factor * self.config.dqn.entropy_regularization_weight if name == "entropy_bonus" else factor
