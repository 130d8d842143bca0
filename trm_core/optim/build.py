"""Parameters -> groups -> optimisers, each with its own peak learning rate on a common schedule.

Two groups learn separately: the model (everything that answers), and the policy (value net and cmi head), with a
learning rate and a gradient clip of its own. AdamAtan2 is invariant to the scale of a gradient, so a small loss weight
alone would hardly slow the policy down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trm_core.config.schema import Config
from trm_core.model.token_embedding import PuzzleEmbedding
from trm_core.model.trm import TinyRecursiveModel
from trm_core.optim.adam_atan2 import adam_atan2
from trm_core.optim.muon import muon
from trm_core.optim.sparse_sign_sgd import SparseSignSGD
from trm_core.optim.uncompiled import AdamW

POLICY_PREFIXES = ("q_head.value_net.", "cmi_head.")


@dataclass
class Optimizers:
    """The optimisers of a run and their groups."""

    all: list[torch.optim.Optimizer]
    peaks: list[float]
    model_params: list[nn.Parameter]
    policy_params: list[nn.Parameter]
    notes: list[str]
    puzzles: SparseSignSGD | None = None  # of the puzzle embeddings; it keeps no state

    def set_factors(self, model: float, policy: float) -> None:
        """Set the model's optimisers and the policy's (the last one) to these shares of their peak rates."""
        for optimizer, peak in zip(self.all, self.peaks, strict=True):
            factor = policy if optimizer is self.all[-1] else model
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        if self.puzzles is not None:
            self.puzzles.factor = model

    def divide_gradients(self, by: float) -> None:
        """Undo a factor on the loss. For puzzle embeddings only the sign counts, so theirs stay as they are."""
        gradients = [p.grad for p in (*self.model_params, *self.policy_params) if p.grad is not None]
        if gradients:
            torch._foreach_div_(gradients, by)

    def norms(self) -> tuple[Tensor, Tensor]:
        """The gradient norm of each part: model, policy. If a part has no gradient: 0, on the weights' device."""
        model, policy = (
            [p.grad for p in part if p.grad is not None] for part in (self.model_params, self.policy_params)
        )
        # Those of frozen weights, too: puzzle embeddings, which are none of them, may be all that learns.
        weights = (weight for optimizer in self.all for group in optimizer.param_groups for weight in group["params"])
        nothing = next(weights).new_zeros(())
        norm = nn.utils.get_total_norm
        return norm(model) if model else nothing, norm(policy) if policy else nothing

    def clip(self, norms: Sequence[Tensor], limits: Sequence[float]) -> None:
        """Scale each part's gradient down to its limit; `norms`: the current ones."""
        for part, norm, limit in zip((self.model_params, self.policy_params), norms, limits, strict=True):
            nn.utils.clip_grads_with_norm_(part, limit, norm)

    def step(self) -> None:
        for optimizer in self.all:
            optimizer.step()
        if self.puzzles is not None:
            self.puzzles.step()

    def zero_grad(self) -> None:
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)
        if self.puzzles is not None:
            self.puzzles.forget()


def build_optimizers(
    model: TinyRecursiveModel, config: Config, frozen: set[str] | None = None, policy_modules: Sequence[nn.Module] = ()
) -> Optimizers:
    """Partition the parameters and make the optimisers of `training.optimizer`.

    frozen: names of parameters that do not learn; their optimiser holds them too, but never sees a gradient of them.
    policy_modules: modules outside the model that learn with the policy.
    """
    training = config.training
    matrices, rest = [], []
    policy = [p for module in policy_modules for p in module.parameters() if p.requires_grad]
    beside = len(policy)
    for name, parameter in model.named_parameters():
        if name.startswith(POLICY_PREFIXES):
            policy.append(parameter)
        elif training.optimizer == "muon" and name.startswith("recursion.") and parameter.dim() == 2:
            matrices.append(parameter)
        else:
            rest.append(parameter)
    assert len(policy) - beside + len(matrices) + len(rest) == len(list(model.parameters()))

    settings: dict[str, Any] = {"betas": training.betas, "weight_decay": training.weight_decay}
    policy_lr = config.dqn.lr or training.base_lr
    optimizers: list[torch.optim.Optimizer] = []
    notes = []
    if matrices:
        optimizer, reason = muon(matrices, lr=training.muon_lr, weight_decay=training.weight_decay)
        optimizers.append(optimizer)
        notes.append(reason)
    peaks = [training.muon_lr] if matrices else []
    for params, lr in ((rest, training.base_lr), (policy, policy_lr)):
        if training.optimizer == "adamatan2":
            optimizer, reason = adam_atan2(params, lr=lr, **settings)
            notes.append(reason)
        else:
            optimizer = AdamW(params, lr=lr, foreach=True, **settings)
        optimizers.append(optimizer)
        peaks.append(lr)
    still = {id(parameter) for name, parameter in model.named_parameters() if name in (frozen or ())}
    learning = [[p for p in params if id(p) not in still] for params in (matrices + rest, policy)]
    puzzles = None
    for name, module in model.named_modules():
        if isinstance(module, PuzzleEmbedding):
            lr = 0.0 if f"{name}.weights" in (frozen or ()) else training.puzzle_emb_lr
            puzzles = SparseSignSGD(module, lr, training.puzzle_emb_weight_decay)
    return Optimizers(optimizers, peaks, learning[0], learning[1], sorted(set(notes)), puzzles)
