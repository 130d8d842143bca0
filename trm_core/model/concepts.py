"""The concept vocabulary: z_H is pulled towards the nearest of `num_concepts` learned vectors (vector quantisation).

    z <- (1 - mix) z + mix q,  q = the nearest code; straight-through      (van den Oord et al. 2017, section 3.2)
    counts <- decay counts + (1 - decay) n,  sums <- decay sums + (1 - decay) S,  code = sums / counts   (appendix A.1)

with n and S the number and the sum of the inputs of each code, over all ranks, once per optimiser step.

Unusual here: the codebook is a buffer, learned by moving averages alone. It starts empty: a code that was never placed
(`ema_counts` 0) is never chosen, and until the first update quantising changes nothing. Codes are placed (at the start,
and again when they die) on inputs of all ranks, picked by keyed random numbers that are the same everywhere. So the
codebook is identical on every rank without any rank being special, and no generator state has to be saved.

Only a few codes are placed at a time, on inputs drawn in proportion to the squared distance to their code, so that
later codes land far from earlier ones (k-means++, Arthur and Vassilvitskii 2007; in rounds, Bahmani et al. 2012). With
24 codes for 16 clusters, placing all codes at once and uniformly missed a cluster in 10 of 20 runs; this way, in 2 of
40.

Shapes: B rows, K positions, D = hidden_size, C codes, d = concept_dim, n valid positions of this rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trm_core.data.fields import CONTROL_SYMBOLS
from trm_core.distributed.collectives import all_rows, all_sum, rank, world_size
from trm_core.keyed_random import Purpose, keyed_uniform

# A code is dead when its average use is at or below this share of the mean use of all codes. A code is placed with the
# mean use, so an unused one lives about ln(10) / (1 - decay) updates: about 229 at a decay of 0.99.
DEAD_SHARE = 0.1

# The largest share of the codes that one update places (at least one code).
PLACED_SHARE = 1 / 16


@dataclass(frozen=True)
class Quantised:
    """The result of quantising. Only `distance` carries a gradient to z."""

    ids: Tensor  # [B, K] int64 in the token vocabulary; 0 at padding
    distance: Tensor  # [B, K] mean over d of (input - code)^2; 0 at padding
    inputs: Tensor  # [B, K, d] float32
    mask: Tensor | None  # [B, K] bool, true where valid

    def rows(self) -> tuple[Tensor, Tensor]:
        """Inputs [n, d] and codes [n] of the valid positions: what `ConceptVocabulary.update` takes."""
        codes = self.ids - CONTROL_SYMBOLS
        if self.mask is None:
            return self.inputs.flatten(0, 1), codes.flatten()
        return self.inputs[self.mask], codes[self.mask]


@dataclass(frozen=True)
class ConceptStatistics:
    """How a vocabulary is used."""

    perplexity: float  # exp of the entropy of the codes' shares, 1 to C; 0 where nothing was quantised
    used: float  # share of the C codes that occur
    dead: int  # codes never placed, or used too little to be kept


class ConceptVocabulary(nn.Module):
    """The codebook, its search and its update."""

    codebook: Tensor
    ema_counts: Tensor
    ema_sums: Tensor

    def __init__(self, hidden_size: int, num_concepts: int, concept_dim: int, mix: float, decay: float) -> None:
        super().__init__()
        self.mix, self.decay = mix, decay
        self.project_in: nn.Module = nn.Identity()
        self.project_out: nn.Module = nn.Identity()
        if concept_dim != hidden_size:
            self.project_in = nn.Linear(hidden_size, concept_dim, bias=False)
            self.project_out = nn.Linear(concept_dim, hidden_size, bias=False)
        self.register_buffer("codebook", torch.zeros(num_concepts, concept_dim))
        self.register_buffer("ema_counts", torch.zeros(num_concepts))
        self.register_buffer("ema_sums", torch.zeros(num_concepts, concept_dim))

    def forward(self, z_BKD: Tensor, mask: Tensor | None) -> tuple[Tensor, Quantised]:
        """z_H [B, K, D] and the mask of valid positions [B, K] (None: all) -> z_H mixed with its concepts.

        Straight-through in the space of the codes: without projections the gradient of the result with respect to z is
        the identity; with them it is (1 - mix) I + mix W_out W_in, so that W_in learns from the task and not only from
        the commitment loss, which it could minimise by mapping everything to one point.
        """
        x = self.project_in(z_BKD).float()
        codes = self._nearest(x.detach())
        placed = (self.ema_counts > 0).any()
        q = torch.where(placed, self.codebook[codes], x.detach())
        # x - x.detach() is exactly 0 but has the gradient of x, so the values stay exactly those of the code.
        concept = self.project_out((q + (x - x.detach())).to(z_BKD.dtype))
        mixed = torch.lerp(z_BKD, concept.to(z_BKD.dtype), self.mix)
        mixed = torch.where(placed, mixed, z_BKD)
        error = x - q
        ids = codes + CONTROL_SYMBOLS
        if mask is not None:
            mixed = torch.where(mask[:, :, None], mixed, z_BKD)
            error = error.masked_fill(~mask[:, :, None], 0.0)
            ids = ids.masked_fill(~mask, 0)
        return mixed, Quantised(ids, error.square().mean(-1), x.detach(), mask)

    def _nearest(self, x: Tensor) -> Tensor:
        """[B, K] the placed code c with the least ||x - c||^2 = ||x||^2 - 2 x.c + ||c||^2; 0 if none is placed."""
        # In bfloat16, rounding the difference of these large numbers would make the choice among near codes random.
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            offset = torch.where(self.ema_counts > 0, self.codebook.square().sum(1), torch.inf)
            return torch.addmm(offset, x.flatten(0, 1), self.codebook.T, alpha=-2.0).argmin(1).view(x.shape[:2])

    @torch.no_grad()
    def update(self, inputs: Tensor, codes: Tensor, step: int, seed: int) -> None:
        """Move the codes to the running averages of their inputs, then place dead codes anew. Every rank calls it.

        inputs [n, d] and codes [n] as returned by `Quantised.rows` (n may be 0 on a rank). If an input of any rank is
        not finite, nothing changes and all ranks raise AssertionError; the caller skips such steps. The order of
        summation is fixed on a CPU; on a GPU, index_add fixes it only under torch.use_deterministic_algorithms.
        """
        size, width = self.codebook.shape
        table = inputs.new_zeros(size, width + 1, dtype=torch.float32)
        table.index_add_(0, codes, torch.cat([inputs.float(), inputs.new_ones(len(inputs), 1)], 1))
        table = all_sum(table)
        # Checked on the global sums, so that all ranks fail together and none waits for another that has.
        assert bool(table.isfinite().all()), f"step {step}: inputs of the codebook are not finite"
        sums, counts = table[:, :-1], table[:, -1]
        total = int(counts.sum())
        if total == 0:
            return
        # While the codebook is empty, all inputs are assigned to code 0, which means nothing.
        placed = self.ema_counts > 0
        counts = counts * placed
        sums = sums * placed[:, None]
        self.ema_counts.lerp_(counts, 1.0 - self.decay)
        self.ema_sums.lerp_(sums, 1.0 - self.decay)
        # The average of an unused code must not change, not even by rounding.
        mean = self.ema_sums / self.ema_counts[:, None]
        self.codebook.copy_(torch.where(counts[:, None] > 0, mean, self.codebook))
        self._revive(inputs.float(), codes, total, step, seed)

    def _dead(self) -> Tensor:
        """[C] bool: codes to place anew."""
        return self.ema_counts <= DEAD_SHARE * self.ema_counts.mean()

    def _revive(self, inputs: Tensor, codes: Tensor, total: int, step: int, seed: int) -> None:
        """Place dead codes on distinct inputs of all ranks, drawn in proportion to ||input - its code||^2."""
        dead = self._dead().nonzero().squeeze(1)
        if not len(dead):
            return
        if bool((self.ema_counts > 0).any()):
            weights = all_rows((inputs - self.codebook[codes]).square().sum(1))
        else:
            weights = inputs.new_ones(total)
        # Sampling without replacement: the smallest of Exponential(1) / weight (Efraimidis and Spirakis 2006). An input
        # that coincides with its code (weight 0) is left out, as it would only duplicate that code.
        numbers = torch.arange(total, device=inputs.device)
        draws = keyed_uniform(seed, step, Purpose.REVIVE_CONCEPT, numbers).clamp(min=2.0**-25)
        most = min(len(dead), max(round(PLACED_SHARE * len(self.codebook)), 1), int((weights > 0).sum()))
        chosen = (-torch.log1p(-draws) / weights).argsort(stable=True)[:most]
        revived = dead[: len(chosen)]
        mean_use = total / len(self.codebook)
        self.codebook[revived] = _rows_of_all_ranks(inputs, chosen)
        self.ema_counts[revived] = mean_use
        self.ema_sums[revived] = self.codebook[revived] * mean_use

    @torch.no_grad()
    def statistics(self, ids: Tensor) -> ConceptStatistics:
        """Use of the codes in `ids` (token vocabulary, any shape; ids below 4 are ignored) over all ranks. Every rank
        calls it.
        """
        size = len(self.codebook)
        counts = all_sum(torch.bincount(ids[ids >= CONTROL_SYMBOLS] - CONTROL_SYMBOLS, minlength=size)).double().cpu()
        dead = int(self._dead().sum())
        if not bool(counts.any()):
            return ConceptStatistics(0.0, 0.0, dead)
        shares = counts / counts.sum()
        entropy = -torch.xlogy(shares, shares).sum()
        return ConceptStatistics(float(entropy.exp()), int((counts > 0).sum()) / size, dead)


def _rows_of_all_ranks(rows: Tensor, chosen: Tensor) -> Tensor:
    """Rows [n, d] on each rank -> those with global numbers `chosen` [r] (in rank order), [r, d], the same on all."""
    if world_size() == 1:
        return rows[chosen]
    lengths = all_rows(torch.tensor([len(rows)], device=rows.device))
    local = chosen - lengths[: rank()].sum()
    mine = (local >= 0) & (local < len(rows))
    found = rows.new_zeros(len(chosen), rows.shape[1])
    found[mine] = rows[local[mine]]
    # One rank contributes the row and all others zeros, so the sum is exact.
    return all_sum(found)
