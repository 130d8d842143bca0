"""Every term of the loss of one reasoning step, and the one forward that DDP wraps.

Each term is a (sum over examples, weight) pair; the total divides by the *global* weight, so that DDP's average over
processes is the global mean. Which examples a term averages over is known before the forward (`term_examples`), so its
divisor can be agreed on beforehand, across processes and across the parts of an accumulated batch. Nothing is divided
by the batch size again. Definitions: docs/decision-process.md.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

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
from trm_core.model.probabilities import Probabilities, log_probabilities
from trm_core.model.rows import join_rows
from trm_core.model.trm import StepOutput, TinyRecursiveModel

Judge = Callable[..., "AnswerQuality"]
OF_REPLAY = ("dqn_loss", "entropy_bonus")  # terms that a step has only if the caller brings transitions


@dataclass(frozen=True)
class Term:
    """A loss as a sum over examples and their number (or weight); or several such pairs ([n] each), where the loss is
    the mean of their means.
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
    exact: Tensor  # bool: all answers are right
    right: Tensor  # what halting is judged by: `exact` for puzzles, `accuracy` for capsules (one answer: the same)
    valid: Tensor  # bool: the row has a label at all


def answer_quality(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    *,
    probabilities: Probabilities = "softmax",
    whole: bool = False,
) -> AnswerQuality:
    """logits [B, P, V], labels [B, P] with -100 ignored. whole: a row counts as right only without a mistake."""
    valid = labels != IGNORE_LABEL
    count = valid.sum(1).clamp(min=1)
    log_p = log_probabilities(logits, probabilities)
    of_label = log_p.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    per_label = -of_label
    if label_smoothing:
        per_label = (1 - label_smoothing) * per_label - label_smoothing * log_p.mean(-1)
    with torch.no_grad():
        hit = (logits.argmax(-1) == labels) & valid
        accuracy, exact = hit.sum(1) / count, (hit | ~valid).all(1)
        probability = (of_label.exp() * valid).sum(1) / count
    return AnswerQuality(
        loss=(per_label * valid).sum(1) / count,
        probability=probability,
        accuracy=accuracy,
        exact=exact,
        right=exact.float() if whole else accuracy,
        valid=valid.any(1),
    )


def judge_of(model: TinyRecursiveModel) -> Judge:
    """`answer_quality` with the settings for this model's answers."""
    return partial(answer_quality, probabilities=model.probabilities, whole=model.data.tokens)


def term_examples(
    model: TinyRecursiveModel, carry: Carry, replayed: ReplayedTargets | None
) -> dict[str, Tensor | list[Tensor]]:
    """What each term that this model and its data can have averages over: a mask or weights of its examples, or a list
    of these if the loss is the mean of several means.
    """
    labelled = (carry.labels != IGNORE_LABEL).any(1)
    capsules = carry.capsules.valid()
    found: dict[str, Tensor | list[Tensor]] = {
        "lm_loss": labelled,
        "q_halt_loss": labelled,
        "q_continue_loss": labelled,
        "reconstruction_loss": capsules,
        "vq_loss": model.position_mask(carry.capsules),
        "cmi_loss": labelled & carry.pending.opened.any(1),
        "rnd_loss": torch.ones_like(labelled),
    }
    if model.mtp is not None:
        depths = range(1, len(model.mtp.depths) + 1)
        found["mtp_loss"] = [carry.labels[:, depth:] != IGNORE_LABEL for depth in depths]
    if replayed is not None:
        found["dqn_loss"] = replayed.weight
        found["entropy_bonus"] = torch.ones_like(replayed.weight)
    return found


def term_over(values: Tensor, examples: Tensor | list[Tensor]) -> Term:
    """Sum of `values` over their examples, a mask or weights of the same shape."""
    assert isinstance(examples, Tensor)
    return Term((values * examples).sum(), examples.sum().to(values.dtype))


def halt_losses(output: StepOutput, quality: AnswerQuality, labels: Tensor, judge: Judge = answer_quality) -> Tensor:
    """[B] BCE of the halt logit against "the answer is right" (`AnswerQuality.right`): after the last cycle or, where
    rows may leave after earlier cycles (`output.early`), averaged over all of them.
    """

    def one(halt_logit: Tensor, right: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(halt_logit, right.to(halt_logit.dtype), reduction="none")

    losses = [one(output.halt_logit, quality.right)]
    for reading in output.early:
        with torch.no_grad():
            right = judge(reading.logits, labels).right
        losses.append(one(reading.halt_logit, right))
    return torch.stack(losses).mean(0)


def continue_losses(model: TinyRecursiveModel, carry: Carry, output: StepOutput) -> Tensor:
    """[B] BCE with HRM's bootstrapped target (arXiv 2506.21734, section 2): what the next step would be worth.

        target = sigmoid(halt')                 if this step is the last
                 sigmoid(max(halt', continue')) otherwise

    As in the paper and its code, the step before the last one bootstraps from a continue logit too, and the last one
    learns from a step that no row takes. The next step is computed without gradient; only this step's continue logit
    learns.
    """
    with torch.no_grad(), nullcontext() if model.memory is None else model.memory.uncounted():
        last = carry.steps >= model.max_steps
        steps = (carry.steps + 1).clamp(max=model.max_steps)
        following = model(output.z_H, output.z_L, carry.capsules, steps, carry.price, output.q_memory)
        assert following.continue_logit is not None
        going_on = torch.maximum(following.halt_logit, following.continue_logit)
        target = torch.where(last, following.halt_logit, going_on).sigmoid()
    assert output.continue_logit is not None
    return F.binary_cross_entropy_with_logits(output.continue_logit, target, reduction="none")


def mtp_term(
    model: TinyRecursiveModel, output: StepOutput, labels: Tensor, valid: Tensor | list[Tensor]
) -> tuple[Term, list[Term]]:
    """Multi-token prediction: the mean over depths of the cross-entropy, and each depth's accuracy.

    Depth d at position i predicts the label of position i + d: labels are shifted, so the last d positions have none.
    Every depth has the same weight, whatever its number of labels. valid: which labels exist at each depth.
    """
    assert model.mtp is not None
    depths, accuracies = [], []
    for depth, (logits, rows) in enumerate(zip(model.mtp(output.z_H), valid, strict=True), start=1):
        moved = labels[:, depth:]
        flat = log_probabilities(logits, model.probabilities).flatten(0, 1)
        loss = F.nll_loss(flat, moved.flatten(), ignore_index=IGNORE_LABEL, reduction="sum")
        count = rows.sum().to(loss.dtype)
        depths.append(Term(loss, count))
        accuracies.append(Term(((logits.argmax(-1) == moved) & rows).sum().to(loss.dtype), count))
    return Term(torch.stack([t.total for t in depths]), torch.stack([t.weight for t in depths])), accuracies


def cycle_error(model: TinyRecursiveModel, capsules: CapsuleState, output: StepOutput) -> Tensor | None:
    """[B, k] squared error of each sketch decoded from its projected children; None without children."""
    if model.sketch_decoder is None or capsules.children is None:
        return None
    embedding = model.capsule_embedding
    detail = embedding.detail(capsules.children) if output.detail is None else output.detail
    return model.sketch_decoder(embedding, detail, capsules.sketches)


def reconstruction_losses(model: TinyRecursiveModel, carry: Carry, output: StepOutput) -> Tensor:
    """[B, k] 1 - cos(sketch_head(z_H), sketch) + MSE(checksum_head(z_H), checksum) + 0.2 * cycle.

    The heads predict from z_H, so the terms have a gradient (comparing data with data has none). In one dimension a
    cosine is only a sign, so there the sketch term is the squared error.
    """
    assert model.reconstruction is not None
    capsules = carry.capsules
    target = model.capsule_embedding.standardised(capsules.sketches)
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
    return per_capsule


def cmi_losses(model: TinyRecursiveModel, carry: Carry, quality: AnswerQuality) -> Tensor:
    """[B] squared error of the fall of the answer's loss that the cmi head predicted for what was just opened."""
    assert model.cmi_head is not None
    opened = carry.pending.opened
    promised = (model.cmi_head(carry.z_H, carry.x, carry.q_state, carry.capsules.mask) * opened).sum(1)
    fall = carry.loss - quality.loss.detach()
    return (promised - fall).square()


def negative_entropy(q_values: Tensor, temperature: float) -> Tensor:
    """[..] minus the entropy of softmax(q / temperature), q [.., A]: a bonus for undecided actions. Invalid actions
    count too, since this is a mere regulariser.
    """
    log_p = (q_values / temperature).log_softmax(-1)
    return (log_p.exp() * log_p).sum(-1)


@dataclass(frozen=True)
class StepResult:
    """One forward, or those of all parts of a batch joined: the loss to differentiate, its terms, and what the decision
    process needs.
    """

    loss: Tensor
    terms: dict[str, Term]
    output: StepOutput
    quality: AnswerQuality
    td_error: Tensor | None  # of the replayed transitions, in their shape
    mtp_accuracy: list[Term] = field(default_factory=list)  # by depth


def joined(parts: list[StepResult]) -> StepResult:
    """The parts of an accumulated batch as one, without gradients. Only the last part replays transitions."""
    if len(parts) == 1:
        return parts[0]

    def total(terms: list[Term]) -> Term:
        return Term(sum_of([term.total for term in terms]), sum_of([term.weight for term in terms]))

    return StepResult(
        loss=sum_of([part.loss for part in parts]),
        terms={name: total([part.terms[name] for part in parts]) for name in parts[0].terms},
        output=join_rows([part.output for part in parts]),
        quality=join_rows([part.quality for part in parts]),
        td_error=parts[-1].td_error,
        mtp_accuracy=[total(list(depth)) for depth in zip(*(part.mtp_accuracy for part in parts), strict=True)],
    )


def sum_of(values: list[Tensor]) -> Tensor:
    return torch.stack([value.detach() for value in values]).sum(0)


class StepLoss(nn.Module):
    """The single module that DDP wraps: carry (and replayed transitions) -> the whole loss of a step."""

    def __init__(self, model: TinyRecursiveModel, config: Config, curiosity: Curiosity | None = None) -> None:
        super().__init__()
        self.model = model
        self.curiosity = curiosity
        self.config = config
        present = {
            "lm_loss": True,
            "q_halt_loss": True,
            "reconstruction_loss": model.reconstruction is not None,
            "q_continue_loss": model.q_head.continue_net is not None,
            "vq_loss": model.concepts is not None,
            "mtp_loss": model.mtp is not None,
            "cmi_loss": model.cmi_head is not None,
            "rnd_loss": curiosity is not None,
            "dqn_loss": True,  # if the caller brings transitions
            "entropy_bonus": config.dqn.enable_entropy_regularization,
        }
        self.names = [name for name, there in present.items() if there]

    def examples(self, carry: Carry, replayed: ReplayedTargets | None) -> dict[str, Tensor | list[Tensor]]:
        """What the terms of this step average over, in the order of their weights."""
        found = term_examples(self.model, carry, replayed)
        return {name: found[name] for name in self.names if replayed is not None or name not in OF_REPLAY}

    def weights(self, carry: Carry, replayed: ReplayedTargets | None) -> Tensor:
        """[n] the weight of every mean of every term. `forward` divides by their sum over the parts of a batch,
        averaged over processes.
        """
        parts = [part for over in self.examples(carry, replayed).values() for part in as_list(over)]
        return torch.stack([part.sum().float() for part in parts])

    def forward(
        self,
        carry: Carry,
        replayed: ReplayedTargets | None,
        step: int,
        policy_only: bool = False,
        divisors: Tensor | None = None,
    ) -> StepResult:
        """carry: rows ready for their next step (halted ones already replaced); step: optimiser steps done.

        policy_only: the predictor is finished; only the value net, the cmi head and curiosity get a gradient, and the
        recursion keeps nothing for backward. divisors [n]: see `weights`; by default those of this batch.
        """
        model, training, dqn = self.model, self.config.training, self.config.dqn
        over = self.examples(carry, replayed)
        mtp_accuracy: list[Term] = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and not policy_only):
            # carry.z_H stays as it was when the capsules were chosen: the cmi head learns from what it saw then.
            z_H = model.next_z_H(carry.z_H, carry.pending.opened)
            output = model(z_H, carry.z_L, carry.capsules, carry.steps, carry.price, carry.q_memory)
            judge = judge_of(model)
            quality = judge(output.logits, carry.labels, training.label_smoothing)
            values = {"lm_loss": quality.loss, "q_halt_loss": halt_losses(output, quality, carry.labels, judge)}
            if model.reconstruction is not None:
                values["reconstruction_loss"] = reconstruction_losses(model, carry, output)
            if model.q_head.continue_net is not None:
                values["q_continue_loss"] = continue_losses(model, carry, output)
            if output.concepts is not None:
                values["vq_loss"] = output.concepts.distance
            elif model.concepts is not None:
                # A finished predictor whose rows leave the cycles early does not report how it quantised.
                none = torch.zeros_like(model.position_mask(carry.capsules))
                over["vq_loss"], values["vq_loss"] = none, none.float()
            if model.mtp is not None:
                mtp, mtp_accuracy = mtp_term(model, output, carry.labels, over["mtp_loss"])
        if model.cmi_head is not None:
            values["cmi_loss"] = cmi_losses(model, carry, quality)
        if self.curiosity is not None:
            values["rnd_loss"] = self.curiosity.errors(model.q_head.readable(output.q_state))
        td_error = None
        if replayed is not None:
            values["dqn_loss"], td_error = td_loss(model.q_head, replayed, dqn.loss)
            if dqn.enable_entropy_regularization:
                q_values = model.q_head.values(replayed.state.flatten(0, -2))
                entropy = negative_entropy(q_values, temperature_at(dqn, step))
                values["entropy_bonus"] = entropy.view_as(replayed.weight)
        terms = {name: mtp if name == "mtp_loss" else term_over(values[name], over[name]) for name in over}
        return StepResult(self.combine(terms, step, divisors), terms, output, quality, td_error, mtp_accuracy)

    def combine(self, terms: dict[str, Term], step: int, divisors: Tensor | None = None) -> Tensor:
        """Weighted sum of the terms' global means."""
        if divisors is None:
            divisors = torch.cat([term.weight.detach().flatten() for term in terms.values()])
        totals = torch.cat([term.total.flatten() for term in terms.values()])
        factors = [
            self.factor(name, step) / term.total.numel() for name, term in terms.items() for _ in term.total.flatten()
        ]
        of_terms = torch.tensor(factors, dtype=totals.dtype).to(totals.device, non_blocking=True)
        return (totals * of_terms / divisors.clamp(min=1e-8)).sum()

    def factor(self, name: str, step: int) -> float:
        """The weight of a term at this step."""
        factor = weight_at(getattr(self.config.loss_weights, name), step / self.config.training.total_steps)
        return factor * self.config.dqn.entropy_regularization_weight if name == "entropy_bonus" else factor


def as_list(value: Tensor | list[Tensor]) -> list[Tensor]:
    return value if isinstance(value, list) else [value]
