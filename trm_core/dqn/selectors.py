"""Which capsule an EXPAND opens: the highest score per price among those it may open."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trm_core.model.capsule_state import CapsuleState
from trm_core.model.probabilities import log_probabilities
from trm_core.model.trm import StepOutput, TinyRecursiveModel

# These peek at unopened detail: at the stored checksum, or at the detail itself. Every table says so.
PEEKING = ("checksum", "variance")
# Of these, what reads the children themselves: all detail is fetched before the first step, and no graph can do it.
READING_DETAIL = ("variance",)


def selection_scores(
    selector: str, model: TinyRecursiveModel, output: StepOutput, capsules: CapsuleState, draws: Tensor
) -> Tensor:
    """[B, k] non-negative worth of opening each capsule.

    | selector | worth |
    | --- | --- |
    | `cmi` | the fall of the loss that the model expects |
    | `entropy` | entropy of the answer that the capsule alone would give, over ln V |
    | `attention` | share of the attention that the capsule gets when the last block reads z_H once more |
    | `static` | the mean fall of the loss after opening this capsule in training: one order for all samples |
    | `random` | `draws` [B, k] |
    | `checksum` | squared distance between the predicted and the stored checksum; peeks |
    | `variance` | variance of the detail itself over children and dimensions; peeks, a baseline |
    """
    if selector == "cmi":
        assert model.cmi_head is not None
        return model.cmi_head(output.z_H, output.x, output.q_state, capsules.mask)
    if selector == "entropy":
        log_p = log_probabilities(model.answer.votes(output.z_H), model.probabilities)
        return -(log_p.exp() * log_p).sum(-1) / math.log(max(log_p.shape[-1], 2))
    if selector == "attention":
        return model.recursion.attention_received(output.z_H, model.attention_bias(capsules)).float()
    if selector == "static":
        assert model.opening_worth is not None
        return model.opening_worth.worth().expand(capsules.expanded.shape[0], -1)
    if selector == "checksum":
        assert model.reconstruction is not None
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
    if budget is None and count >= allowed.shape[1]:
        return allowed
    worth = (scores / capsules.prices).masked_fill(~allowed, -torch.inf)
    place = torch.arange(allowed.shape[1], device=allowed.device)
    picked, going = torch.zeros_like(allowed), torch.ones_like(allowed[:, :1])
    left = None if budget is None else budget * (1 + 1e-6) - capsules.spent
    # One after the other instead of sorted: the first of equals wins, and an exported graph of it runs everywhere.
    for _ in range(min(count, allowed.shape[1])):
        best = (place == worth.argmax(1, keepdim=True)) & allowed
        if left is not None:
            # A capsule that no longer fits is skipped with all that rank below it: cheap ones wait for the next EXPAND.
            left = left - (best * capsules.prices).sum(1)
            going = going & (left >= 0)[:, None]
        picked = picked | (best & going)
        worth = worth.masked_fill(best, -torch.inf)
        allowed = allowed & ~best
    return picked
