"""Which capsule an EXPAND opens: the highest score per price among those it may open."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trm_core.model.capsule_state import CapsuleState
from trm_core.model.trm import StepOutput, TinyRecursiveModel

# These look at something of unopened detail: the stored checksum, or the detail itself. Every table says so.
PEEKING = ("checksum", "variance")


def selection_scores(
    selector: str, model: TinyRecursiveModel, output: StepOutput, capsules: CapsuleState, draws: Tensor
) -> Tensor:
    """[B, k] non-negative worth of opening each capsule.

    | selector | worth |
    | --- | --- |
    | `cmi` | the fall of the loss that the model expects |
    | `entropy` | entropy of the answer that the capsule alone would give, over ln V |
    | `attention` | share of the attention that the capsule gets in the last block |
    | `static` | the mean fall of the loss after opening this capsule in training: one order for all samples |
    | `random` | `draws` [B, k] |
    | `checksum` | squared distance between the predicted and the stored checksum; peeks |
    | `variance` | variance of the detail itself over children and dimensions; peeks, a baseline |
    """
    if selector == "cmi":
        assert model.cmi_head is not None
        return model.cmi_head(output.z_H, output.x, output.q_state, capsules.mask)
    if selector == "entropy":
        log_p = model.answer.votes(output.z_H).float().log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1) / math.log(max(log_p.shape[-1], 2))
    if selector == "attention":
        return model.recursion.attention_received(output.z_H, model.attention_bias(capsules)).float()
    if selector == "static":
        assert model.opening_worth is not None
        return model.opening_worth.worth().expand(len(capsules.expanded), -1)
    if selector == "checksum":
        assert model.reconstruction.checksum is not None
        assert capsules.checksums is not None
        return (model.reconstruction.checksum(output.z_H) - capsules.checksums).square().mean(-1)
    if selector == "variance":
        assert capsules.children is not None
        return capsules.children.float().var((2, 3), correction=0)
    assert selector == "random", selector
    return draws


def choose_capsules(
    scores: Tensor, capsules: CapsuleState, allowed: Tensor, count: int, budget: float | None
) -> Tensor:
    """[B, k] bool: up to `count` allowed capsules, best score per price first, none past the budget.

    scores [B, k] >= 0; allowed [B, k] bool.
    """
    worth = (scores / capsules.prices).masked_fill(~allowed, -torch.inf)
    order = worth.argsort(dim=1, descending=True, stable=True)[:, :count]
    picked = torch.gather(allowed, 1, order)
    if budget is not None:
        left = budget * (1 + 1e-6) - capsules.spent
        # A capsule that no longer fits is skipped together with all behind it: cheap ones wait for the next EXPAND.
        picked &= (capsules.prices[order] * picked).cumsum(1) <= left[:, None]
    return torch.zeros_like(allowed).scatter(1, order, picked)
