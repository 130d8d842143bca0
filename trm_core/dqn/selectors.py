"""Which capsule an EXPAND opens: the highest score per price among those it may open."""

from __future__ import annotations

import torch
from torch import Tensor

from trm_core.model.capsule_state import CapsuleState
from trm_core.model.trm import StepOutput, TinyRecursiveModel


def selection_scores(
    selector: str, model: TinyRecursiveModel, output: StepOutput, capsules: CapsuleState, draws: Tensor
) -> Tensor:
    """[B, k] non-negative worth of opening each capsule.

    `cmi`: the fall of the loss that the model expects. `checksum`: squared distance between the predicted and the
    stored checksum; it peeks at side information about unopened detail. `random`: `draws` [B, k].
    """
    if selector == "cmi":
        assert model.cmi_head is not None
        return model.cmi_head(output.z_H, output.x, output.q_state)
    if selector == "checksum":
        assert model.reconstruction.checksum is not None
        assert capsules.checksums is not None
        return (model.reconstruction.checksum(output.z_H) - capsules.checksums).square().mean(-1)
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
