"""The memory bank: good past states, looked up by every position of z_H (pipeline.md, "Multi-Position Memory Queries").

    z_H <- norm(z_H + gate * output(retrieve(z_H)))           `read` returns what is added

Unusual here: the slots are buffers that only `write` changes, never a gradient; what is learned is how to ask (query),
how to use the answer (output) and how much of it (gate). Shapes never depend on how full the bank is, so a read needs
no host synchronisation. Everything is a deterministic function of the rows and read counts of *all* ranks, so all ranks
hold the same bank.

Shapes: B rows, K positions, N = B * K queries, D hidden size, C capacity, T top_k, n heads, d a key's or value's width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trm_core.config.schema import MemoryConfig
from trm_core.distributed.collectives import all_sum
from trm_core.model.layers import truncated_normal_

# Training steps after which an unread slot has lost one unit of value and old reads count half. When some tens of rows
# are written per step, a bank of a few thousand slots turns over once in about this time.
HALF_LIFE = 100
# Tolerance for the rounding of a cosine, so that a threshold of 1.0 merges exact copies.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class WriteCounts:
    """What became of the rows of one write: rows = free + evicting + merged + dropped + refused."""

    rows: int  # given
    free: int  # took a free slot
    evicting: int  # took the slot of another entry
    merged: int  # were too similar to a slot, or to an earlier row that got one
    dropped: int  # did not fit: more new entries than slots
    refused: int  # had a value that is not finite


class MemoryBank(nn.Module):
    """`capacity` entries of key, value and quality. The filled slots are the first `filled`; the others hold zeros."""

    keys: Tensor  # [C, d] float32, RMS 1
    values: Tensor  # [C, d] float32
    quality: Tensor  # [C] float32
    access_counts: Tensor  # [C] int64: reads and merged rows, halved every HALF_LIFE steps
    last_used: Tensor  # [C] int64: step of the last read, merge or write
    written: Tensor  # [C] int64: step at which the slot was taken
    filled: Tensor  # [] int64
    last_write: Tensor  # [] int64: step of the last write
    pending: Tensor  # [C] int64: this rank's reads since the last write
    key_projection: Tensor | None  # [d, D]; None where a key is as wide as z_H
    value_projection: Tensor | None

    def __init__(self, config: MemoryConfig, hidden_size: int) -> None:
        super().__init__()
        key_dim, value_dim = (hidden_size if d == "auto" else d for d in (config.key_dim, config.value_dim))
        for name, width in (("key_dim", key_dim), ("value_dim", value_dim)):
            assert width <= hidden_size, f"{name}={width} is wider than hidden_size={hidden_size}"
            assert width % config.num_heads == 0, f"num_heads={config.num_heads} does not divide {name}={width}"
        self.capacity, self.top_k, self.heads = config.capacity, config.top_k, config.num_heads
        self.dedup_threshold = config.dedup_threshold
        self.query = nn.Linear(hidden_size, key_dim, bias=False)
        self.output = nn.Linear(value_dim, hidden_size, bias=False)
        self.gate = nn.Parameter(torch.empty(hidden_size))
        self.register_buffer("keys", torch.zeros(self.capacity, key_dim))
        self.register_buffer("values", torch.zeros(self.capacity, value_dim))
        self.register_buffer("quality", torch.zeros(self.capacity))
        for name in ("access_counts", "last_used", "written"):
            self.register_buffer(name, torch.zeros(self.capacity, dtype=torch.int64))
        for name in ("filled", "last_write"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.register_buffer("pending", torch.zeros(self.capacity, dtype=torch.int64), persistent=False)
        # Saved with the bank: another machine's QR may differ in the last bit, or in signs.
        self.register_buffer("key_projection", _projection(key_dim, hidden_size, seed=0))
        self.register_buffer("value_projection", _projection(value_dim, hidden_size, seed=1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initial values. The bank changes nothing at first, yet learns.

        | parameter | initial value                                                                          |
        | --------- | -------------------------------------------------------------------------------------- |
        | gate      | 0: nothing is added; it has a gradient from the first read on, because output is not 0 |
        | output    | truncated normal, 1/sqrt(value_dim)                                                    |
        | query     | the key projection, so that a state finds similar ones before anything is learned      |
        """
        self.gate.zero_()
        truncated_normal_(self.output.weight, 1.0 / math.sqrt(self.output.in_features))
        if self.key_projection is None:
            nn.init.eye_(self.query.weight)
        else:
            self.query.weight.copy_(self.key_projection)

    @torch.no_grad()
    def begin_anew(self) -> None:
        """Reset the clocks but keep the entries, for a run whose steps start at 0 again."""
        for clock in (self.written, self.last_used, self.last_write):
            clock.zero_()

    def read(self, z_BKD: Tensor) -> Tensor:
        """What to add to z_H: [B, K, D] -> [B, K, D]; zeros while the bank is empty.

        One exact top-k over the filled slots by query·key/sqrt(d), then attention of each head over those T slots.
        With queries and keys of RMS 1, the scores of unrelated states have a standard deviation of 1 and that of a
        state with itself is sqrt(d): the usual scale of attention. In training mode, reads of filled slots are counted.
        """
        B, K, _ = z_BKD.shape
        query_Nd = self.query(z_BKD).reshape(B * K, -1)
        slots = torch.arange(self.capacity, device=self.keys.device)
        # An empty bank reads slot 0, which holds zeros: kernels disagree on the softmax over nothing.
        readable = slots < self.filled.clamp(min=1)
        with torch.no_grad():
            bias = torch.zeros_like(self.quality).masked_fill_(~readable, -math.inf)
            scores_NC = torch.addmm(bias.to(query_Nd.dtype), query_Nd, self.keys.to(query_Nd.dtype).T)
            found_NT = scores_NC.topk(self.top_k, dim=1).indices
            if self.training:
                found = found_NT.flatten()
                self.pending.index_add_(0, found, (found < self.filled).long())
        # [N, n, 1, d/n] against [N, n, T, d/n]; the scale is 1/sqrt(d/n).
        query = query_Nd.view(B * K, 1, self.heads, -1).transpose(1, 2)
        keys, values = (
            slots[found_NT].view(B * K, self.top_k, self.heads, -1).transpose(1, 2).to(query.dtype)
            for slots in (self.keys, self.values)
        )
        answer = F.scaled_dot_product_attention(query, keys, values, attn_mask=readable[found_NT][:, None, None, :])
        return self.gate * self.output(answer.reshape(B, K, -1))

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Do not count the reads inside, which are those of a mere look-ahead."""
        counted = self.pending.clone()
        yield
        self.pending.copy_(counted)

    def forget_pending(self) -> None:
        """Discard the reads counted since the last write, because their step is skipped."""
        self.pending.zero_()

    @torch.no_grad()
    def write(self, entries: Tensor, quality: Tensor, step: int) -> WriteCounts:
        """Store states. A collective: every rank calls it at every step that is not skipped, with or without rows.

        entries [n, D] and quality [n] are the rows of all ranks in rank order (`collectives.all_rows`); `step` never
        decreases. In this order:

        1. The reads since the last write are counted, summed over ranks.
        2. A row whose key has a cosine of dedup_threshold or more with a filled slot merges into the nearest such slot.
           Each remaining row merges by the same rule into the nearest earlier row that did not merge itself.
        3. Of what was merged, the content of the highest quality stays (among equals the newest, which comes from the
           newest model), and each merged row counts as a use.
        4. New entries take the free slots, then those with the lowest `slot_values`. If there are more of them than
           slots, the best stay.
        """
        assert self.training, "the memory bank was written to in evaluation mode"
        assert entries.shape == (len(quality), self.query.in_features), (entries.shape, quality.shape)
        self._commit_reads(step)
        finite = entries.isfinite().all(1) & quality.isfinite()
        entries, quality = entries[finite].float(), quality[finite].float()
        rows = len(entries)
        if not rows:
            return WriteCounts(len(finite), free=0, evicting=0, merged=0, dropped=0, refused=len(finite))
        keys, values = (
            rms_normalised(_projected(entries, self.key_projection)),
            _projected(entries, self.value_projection),
        )
        target = self._targets(keys)

        # Rows grouped by target, in the order of targets; within a group the last row is the one that stays.
        order = quality.argsort(stable=True)
        order = order[target[order].argsort(stable=True)]
        group, sizes = target[order].unique_consecutive(return_counts=True)
        winner = order[sizes.cumsum(0) - 1]

        known = group < self.capacity
        slots, best = group[known], winner[known]
        self.access_counts[slots] += sizes[known]
        self.last_used[slots] = step
        better = quality[best] >= self.quality[slots]
        self._put(slots[better], best[better], keys, values, quality)

        fresh, sizes = winner[~known], sizes[~known]
        kept = _best(quality[fresh], self.capacity)
        slots, free = self._make_room(len(kept), step)
        self._put(slots, fresh[kept], keys, values, quality)
        self.access_counts[slots] = sizes[kept] - 1
        self.last_used[slots] = step
        self.written[slots] = step
        return WriteCounts(
            rows=len(finite),
            free=free,
            evicting=len(kept) - free,
            merged=int(sizes[kept].sum()) - len(kept) + rows - int(sizes.sum()),
            dropped=int(sizes.sum() - sizes[kept].sum()),
            refused=len(finite) - rows,
        )

    def slot_values(self, step: int) -> Tensor:
        """[C] value of each slot, of which the lowest are replaced first; -inf where free.

            quality + log2((1 + access_counts) / (1 + age)) - idle / HALF_LIFE

        Reads per step instead of reads, so that a new entry is judged over its own lifetime; age is capped at
        2 HALF_LIFE, the span that the halved counts represent. A unit of quality weighs as much as twice the reads, or
        as HALF_LIFE fewer idle steps.
        """
        age = (step - self.written).clamp(max=2 * HALF_LIFE)
        reads_per_step = (1 + self.access_counts) / (1 + age)
        value = self.quality + reads_per_step.log2() - (step - self.last_used) / HALF_LIFE
        return value.masked_fill(torch.arange(self.capacity, device=value.device) >= self.filled, -math.inf)

    @torch.no_grad()
    def statistics(self) -> dict[str, Tensor]:
        """Means over the filled slots as of the last write, 0-d; 0 while the bank is empty."""
        filled = torch.arange(self.capacity, device=self.filled.device) < self.filled
        count = self.filled.clamp(min=1)

        def mean(values: Tensor) -> Tensor:
            return (values * filled).sum() / count

        return {
            "filled": self.filled / self.capacity,
            "quality": mean(self.quality),
            "access_count": mean(self.access_counts),
            "unread": mean(self.access_counts == 0),
            "idle_steps": mean(self.last_write - self.last_used),
            "age_steps": mean(self.last_write - self.written),
            "gate": self.gate.abs().mean(),
        }

    def _commit_reads(self, step: int) -> None:
        """Add the reads of all ranks to the counts, which are first halved for every HALF_LIFE steps gone by."""
        halvings = (step // HALF_LIFE - self.last_write // HALF_LIFE).clamp(0, 62)
        self.access_counts >>= halvings
        reads = all_sum(self.pending)
        self.access_counts += reads
        self.last_used.masked_fill_(reads > 0, step)
        self.pending.zero_()
        self.last_write.fill_(step)

    def _targets(self, keys: Tensor) -> Tensor:
        """[n] where each row goes: a slot that it merges into, or capacity + the row that founds its new entry."""
        rows, width = keys.shape
        row = torch.arange(rows, device=keys.device)
        least = self.dedup_threshold - _ROUNDING
        filled = torch.arange(self.capacity, device=keys.device) < self.filled
        to_slots = (keys @ self.keys.T / width).masked_fill(~filled, -math.inf)
        nearest = to_slots.argmax(1)
        merges = to_slots[row, nearest] >= least

        to_rows = keys @ keys.T / width
        like_earlier = (to_rows >= least).tril(-1) & ~merges
        # A row founds an entry if it is similar to no earlier founder. After i rounds the first i rows are right;
        # usually two or three rounds settle all of them.
        founds = ~merges
        while not torch.equal(founds, following := ~merges & ~(like_earlier & founds).any(1)):
            founds = following
        founder = to_rows.masked_fill(~(like_earlier & founds), -math.inf).argmax(1)
        return torch.where(merges, nearest, self.capacity + torch.where(founds, row, founder))

    def _make_room(self, count: int, step: int) -> tuple[Tensor, int]:
        """Slots for `count` new entries, free ones first, and how many of them were free; marks these as filled."""
        filled = int(self.filled)
        free = min(count, self.capacity - filled)
        victims = self.slot_values(step)[:filled].argsort(stable=True)[: count - free]
        self.filled += free
        return torch.cat([torch.arange(filled, filled + free, device=victims.device), victims]), free

    def _put(self, slots: Tensor, rows: Tensor, keys: Tensor, values: Tensor, quality: Tensor) -> None:
        self.keys[slots] = keys[rows]
        self.values[slots] = values[rows]
        self.quality[slots] = quality[rows]


def rms_normalised(x: Tensor) -> Tensor:
    """x / RMS(x) over the last dimension, exactly (no epsilon inside the root); 0 stays 0."""
    return x / x.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-30)


def _projection(width: int, hidden_size: int, seed: int) -> Tensor | None:
    """[width, hidden_size] with orthonormal rows; None if both are equal.

    An input of RMS 1 gives an output of RMS about 1: |P x|^2 is on average width / hidden_size of |x|^2.
    """
    if width == hidden_size:
        return None
    normal = torch.randn(hidden_size, width, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(normal).Q.T.contiguous()


def _projected(entries: Tensor, projection: Tensor | None) -> Tensor:
    return entries if projection is None else entries @ projection.T


def _best(quality: Tensor, most: int) -> Tensor:
    """Ascending indices of the `most` best; among equals, of the later ones."""
    return quality.argsort(stable=True)[-most:].sort().values
