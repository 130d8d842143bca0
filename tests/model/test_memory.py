"""The memory bank against a list of entries, on several ranks, in evaluation, and at what it is for."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from ranks import on_ranks
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trm_core.config.schema import MemoryConfig
from trm_core.distributed.collectives import all_rows
from trm_core.model.memory import HALF_LIFE, MemoryBank, WriteCounts, rms_normalised

D = 8


def make_bank(hidden: int = D, seed: int = 0, gate: float | None = 0.5, **keys: Any) -> MemoryBank:
    """A bank that shows: its gate is open."""
    torch.manual_seed(seed)
    config = MemoryConfig.model_validate({"capacity": 6, "num_heads": 2, "top_k": 2, "dedup_threshold": 0.9, **keys})
    bank = MemoryBank(config, hidden)
    if gate is not None:
        nn.init.normal_(bank.query.weight, std=hidden**-0.5)
        nn.init.normal_(bank.gate, std=gate)
    return bank


def unit(*places: int, width: int = D) -> Tensor:
    """Rows that each have a single 1: unlike each other."""
    return torch.eye(width)[list(places)]


def buffers(bank: MemoryBank) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in bank.named_buffers()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# The naive bank ------------------------------------------------------------------------------------------------------


@dataclass
class Slot:
    key: list[float]
    value: list[float]
    quality: float
    accesses: int
    used: int
    written: int


def dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def project(x: list[float], matrix: Tensor | None) -> list[float]:
    return x if matrix is None else [dot(x, row) for row in matrix.tolist()]


def clear(gap: float) -> None:
    """Examples that rounding could decide prove nothing."""
    if abs(gap) < 1e-5:
        reject()


@dataclass
class Naive:
    """Slots in a list, one row after the other, double precision."""

    like: MemoryBank  # whose parameters and projections it uses
    slots: list[Slot] = field(default_factory=list)
    pending: dict[int, int] = field(default_factory=dict)
    last_write: int = 0

    def read(self, z: Tensor, training: bool) -> Tensor:
        bank = self.like
        out = []
        for row in z.flatten(0, 1):
            query = (bank.query.weight @ row).tolist()
            scores = [dot(query, slot.key) for slot in self.slots]
            order = sorted(range(len(scores)), key=lambda slot: -scores[slot])
            if len(order) > bank.top_k:
                clear(scores[order[bank.top_k - 1]] - scores[order[bank.top_k]])
            found = order[: bank.top_k]
            if training:
                for slot in found:
                    self.pending[slot] = self.pending.get(slot, 0) + 1
            answer: list[float] = [0.0] * bank.values.shape[1]
            keys, values = len(query) // bank.heads, len(answer) // bank.heads
            for head in range(bank.heads if found else 0):
                part = slice(head * keys, (head + 1) * keys)
                logits = [dot(query[part], self.slots[slot].key[part]) / math.sqrt(keys) for slot in found]
                total = sum(math.exp(logit) for logit in logits)
                for slot, logit in zip(found, logits, strict=True):
                    for i in range(head * values, (head + 1) * values):
                        answer[i] += math.exp(logit) / total * self.slots[slot].value[i]
            out.append(bank.gate * (bank.output.weight @ torch.tensor(answer)))
        return torch.stack(out).view(*z.shape[:2], -1)

    def worth(self, slot: Slot, step: int) -> float:
        # float32, like the bank: ties must stay ties.
        rate = (1 + torch.tensor(slot.accesses)) / (1 + min(step - slot.written, 2 * HALF_LIFE))
        return float(torch.tensor(slot.quality) + rate.log2() - torch.tensor(step - slot.used) / HALF_LIFE)

    def write(self, entries: list[list[float]], quality: list[float], step: int) -> WriteCounts:
        bank = self.like
        for _ in range(self.last_write // HALF_LIFE, step // HALF_LIFE):
            for slot in self.slots:
                slot.accesses //= 2
        for place, reads in self.pending.items():
            self.slots[place].accesses += reads
            self.slots[place].used = step
        self.pending, self.last_write = {}, step

        raw = [project(entry, bank.key_projection) for entry in entries]
        keys = [[x / math.sqrt(dot(key, key) / len(key)) for x in key] for key in raw]
        values = [project(entry, bank.value_projection) for entry in entries]
        into_slots: dict[int, list[int]] = {}
        groups: dict[int, list[int]] = {}
        for row, key in enumerate(keys):
            for known, among in (
                (into_slots, {place: slot.key for place, slot in enumerate(self.slots)}),
                (groups, {founder: keys[founder] for founder in groups}),
            ):
                cosines = {place: dot(key, other) / len(key) for place, other in among.items()}
                for cosine in cosines.values():
                    clear(cosine - bank.dedup_threshold)
                best = max(cosines, key=lambda place: cosines[place], default=-1)
                if best >= 0 and cosines[best] >= bank.dedup_threshold:
                    known.setdefault(best, []).append(row)
                    break
            else:
                groups[row] = [row]

        def winner(rows: list[int]) -> int:
            return max(rows, key=lambda row: (quality[row], row))

        for place, rows in into_slots.items():
            slot, best = self.slots[place], winner(rows)
            slot.accesses += len(rows)
            slot.used = step
            if quality[best] >= slot.quality:
                slot.key, slot.value, slot.quality = keys[best], values[best], quality[best]

        founders = sorted(groups, key=lambda f: (quality[winner(groups[f])], f))[-bank.capacity :]
        dropped = sum(len(groups[f]) for f in groups if f not in founders)
        free = min(len(founders), bank.capacity - len(self.slots))
        worst = sorted(range(len(self.slots)), key=lambda place: (self.worth(self.slots[place], step), place))
        for number, founder in enumerate(sorted(founders)):
            best = winner(groups[founder])
            slot = Slot(keys[best], values[best], quality[best], len(groups[founder]) - 1, step, step)
            if number < free:
                self.slots.append(slot)
            else:
                self.slots[worst[number - free]] = slot
        merged = len(entries) - len(founders) - dropped
        return WriteCounts(len(entries), free, len(founders) - free, merged, dropped, 0)

    def check(self, bank: MemoryBank) -> None:
        filled = int(bank.filled)
        assert filled == len(self.slots)
        for name, own in (("access_counts", "accesses"), ("last_used", "used"), ("written", "written")):
            assert getattr(bank, name)[:filled].tolist() == [getattr(slot, own) for slot in self.slots], name
        for name, own in (("keys", "key"), ("values", "value"), ("quality", "quality")):
            wanted = torch.tensor([getattr(slot, own) for slot in self.slots])
            torch.testing.assert_close(getattr(bank, name)[:filled], wanted.view_as(getattr(bank, name)[:filled]))
            assert not getattr(bank, name)[filled:].any()
        assert bank.pending.tolist() == [self.pending.get(place, 0) for place in range(bank.capacity)]


@given(
    seed=st.integers(0, 10**6),
    capacity=st.integers(2, 12),
    dims=st.sampled_from([("auto", "auto"), (4, 6)]),
    threshold=st.sampled_from([0.3, 0.9, 0.98]),
    prototypes=st.integers(1, 20),
    actions=st.lists(
        st.sampled_from(["read", "read", "write", "write", "evaluate", "forget", "reload"]), min_size=4, max_size=25
    ),
)
@settings(max_examples=60, deadline=None)
def test_equals_a_list_under_random_operations(
    seed: int, capacity: int, dims: tuple[Any, Any], threshold: float, prototypes: int, actions: list[str]
) -> None:
    keys = {"capacity": capacity, "key_dim": dims[0], "value_dim": dims[1], "dedup_threshold": threshold}
    bank = make_bank(**keys)
    naive = Naive(bank)
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(prototypes, D, generator=random)

    def draw(rows: int) -> Tensor:
        which = torch.randint(prototypes, (rows,), generator=random)
        return centres[which] + 0.3 * torch.randn(rows, D, generator=random)

    step = 0
    for action in actions:
        if action in ("read", "evaluate"):
            bank.train(action == "read")
            z = draw(6).view(3, 2, D)
            torch.testing.assert_close(bank.read(z), naive.read(z, action == "read"), rtol=1e-4, atol=1e-5)
            bank.train()
        elif action == "write":
            step += int(torch.randint(1, 150, (), generator=random))
            rows = int(torch.randint(0, 2 * capacity, (), generator=random))
            entries = draw(rows)
            quality = torch.randint(2, 5, (rows,), generator=random) / 4
            counts = bank.write(entries, quality, step)
            assert counts == naive.write(entries.tolist(), quality.tolist(), step)
            assert counts.rows == counts.free + counts.evicting + counts.merged + counts.dropped + counts.refused
        elif action == "forget":
            bank.forget_pending()
            naive.pending = {}
        else:
            bank.forget_pending()  # what is pending is not saved
            naive.pending = {}
            saved = bank.state_dict()
            bank = make_bank(seed=1, **keys)
            bank.load_state_dict(saved)
            naive.like = bank
        naive.check(bank)


# Reading -------------------------------------------------------------------------------------------------------------


def test_an_empty_bank_adds_nothing_and_every_parameter_gets_a_gradient() -> None:
    bank = make_bank(top_k=4)
    read = bank.read(torch.randn(3, 2, D))
    assert read.shape == (3, 2, D)
    assert not read.any()
    read.sum().backward()
    for name, parameter in bank.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
    assert not bank.pending.any()


def test_at_first_the_bank_changes_nothing_but_its_gate_learns_at_once() -> None:
    bank = make_bank(gate=None)
    bank.write(torch.randn(5, D), torch.ones(5), 1)
    z = torch.randn(3, 2, D)
    read = bank.read(z)
    assert not read.any()
    (read * torch.randn_like(read)).sum().backward()
    assert bank.gate.grad is not None
    assert bool(bank.gate.grad.all())
    assert bank.output.weight.grad is not None
    assert not bank.output.weight.grad.any()
    with torch.no_grad():
        bank.gate -= 0.1 * bank.gate.grad.sign()
    (bank.read(z) * torch.randn_like(read)).sum().backward()
    assert bool(bank.output.weight.grad.any())
    assert bank.query.weight.grad is not None
    assert bool(bank.query.weight.grad.any())


def test_reading_keeps_z_H_at_rms_1() -> None:
    """Otherwise z_H grows with every read, and the input weighs less and less beside it."""
    model = tiny.make_model(tiny.make_config(memory={"enabled": True, "capacity": 8, "top_k": 2, "num_heads": 2}))
    assert model.memory is not None
    model.memory.write(torch.randn(8, model.first_z_H.shape[0]), torch.rand(8), step=0)
    with torch.no_grad():
        model.memory.gate.fill_(5.0)
    refined, _ = model.refine(rms_normalised(torch.randn(3, tiny.K, model.first_z_H.shape[0])), None)
    torch.testing.assert_close(refined.square().mean(-1), torch.ones(3, tiny.K), rtol=1e-3, atol=1e-3)


def test_learning_moves_parameters_and_never_slots() -> None:
    bank = make_bank()
    bank.write(torch.randn(9, D, requires_grad=True), torch.ones(9), 1)
    z = torch.randn(3, 2, D, requires_grad=True)
    before = buffers(bank)
    bank.eval().read(z).square().sum().backward()
    assert z.grad is not None
    assert bool(z.grad.any())
    assert {name for name, p in bank.named_parameters()} == {"query.weight", "output.weight", "gate"}
    assert all(bool(p.grad.any()) for p in bank.parameters() if p.grad is not None)
    assert all(buffer.grad is None and not buffer.requires_grad for buffer in bank.buffers())
    torch.optim.SGD(bank.parameters(), lr=1.0).step()
    assert same(buffers(bank), before)


@pytest.mark.parametrize("widths", [("auto", "auto"), (16, 8)])
def test_a_state_finds_its_like_before_anything_is_learned(widths: tuple[Any, Any]) -> None:
    bank = make_bank(hidden=32, gate=None, capacity=50, top_k=1, key_dim=widths[0], value_dim=widths[1])
    entries = rms_normalised(torch.randn(50, 32))
    bank.write(entries, torch.ones(50), 1)
    bank.read((entries + 0.1 * torch.randn(50, 32))[:, None])
    assert bank.pending.tolist() == [1] * 50, "each finds its own"
    scores = bank.query(entries).detach() @ bank.keys.T / math.sqrt(bank.keys.shape[1])
    others = scores[~torch.eye(50, dtype=torch.bool)]
    assert 0.8 < float(others.std()) < 1.2, "strangers: deviation 1"
    assert float(scores.diagonal().mean()) == pytest.approx(math.sqrt(bank.keys.shape[1]), rel=0.05)
    for projection in (bank.key_projection, bank.value_projection):
        if projection is not None:
            torch.testing.assert_close(projection @ projection.T, torch.eye(len(projection)))


class Watch(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gives, and the operations' names."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))])
        return result


def test_no_tensor_is_larger_than_one_score_per_query_and_slot() -> None:
    B, K, hidden, capacity = 96, 12, 512, 4096
    bank = make_bank(hidden, capacity=capacity, num_heads=8, top_k=4)
    bank.write(torch.randn(capacity, hidden), torch.ones(capacity), 1)
    assert int(bank.filled) == capacity
    with Watch() as watch:
        bank.read(torch.randn(B, K, hidden, requires_grad=True)).sum().backward()
    assert watch.numel == B * K * capacity


def test_a_read_never_waits_for_the_device_and_a_fuller_bank_needs_no_new_graph() -> None:
    bank = make_bank()
    z = torch.randn(3, 2, D)
    with Watch() as watch:
        bank.read(z)
    assert "topk" in watch.names
    assert not watch.names & {"_local_scalar_dense", "nonzero"}
    compiled = torch.compile(bank.read, backend="eager", fullgraph=True)
    compiled(z)
    with torch._dynamo.config.patch(error_on_recompile=True):
        bank.write(torch.randn(3, D), torch.ones(3), 1)
        assert torch.equal(compiled(z), bank.read(z))


def test_autocast_reads_nearly_the_same() -> None:
    bank = make_bank(hidden=64, capacity=20, top_k=20)
    bank.write(torch.randn(15, 64), torch.ones(15), 1)
    z = torch.randn(2, 3, 64)
    exact = bank.read(z)
    with torch.autocast("cpu", torch.bfloat16):
        rough = bank.read(z)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.03)


def test_evaluation_changes_no_buffer() -> None:
    bank = make_bank()
    bank.write(torch.randn(4, D), torch.ones(4), 1)
    bank.read(torch.randn(2, 2, D))
    before = buffers(bank)
    bank.eval()
    bank.read(torch.randn(5, 3, D))
    bank.statistics()
    with pytest.raises(AssertionError, match="evaluation"):
        bank.write(torch.randn(1, D), torch.ones(1), 2)
    assert same(buffers(bank), before)
    bank.train().read(torch.randn(5, 3, D))
    assert not same(buffers(bank), before)


# Writing -------------------------------------------------------------------------------------------------------------


def test_reads_count_at_the_next_write_unless_they_are_forgotten() -> None:
    bank = make_bank(top_k=1)
    bank.write(unit(0, 1), torch.ones(2), 1)
    bank.query.weight.data.copy_(torch.eye(D))
    bank.read(unit(1, 1, 0)[:, None])
    assert not bank.access_counts.any()
    bank.write(torch.empty(0, D), torch.empty(0), 2)
    assert bank.access_counts[:2].tolist() == [1, 2]
    assert bank.last_used[:2].tolist() == [2, 2]
    bank.read(unit(1)[:, None])
    bank.forget_pending()
    bank.write(torch.empty(0, D), torch.empty(0), 3)
    assert bank.access_counts[:2].tolist() == [1, 2]
    assert bank.last_used[:2].tolist() == [2, 2]


def test_the_better_of_like_entries_stays_and_the_newer_of_equals() -> None:
    bank = make_bank()
    first = unit(0) + 0.1 * unit(1)
    bank.write(first, torch.tensor([0.8]), 1)
    counts = bank.write(unit(0), torch.tensor([0.7]), 2)
    assert counts == WriteCounts(rows=1, free=0, evicting=0, merged=1, dropped=0, refused=0)
    assert torch.equal(bank.values[:1], first)
    newer = 3 * unit(0)
    bank.write(newer, torch.tensor([0.8]), 3)
    assert torch.equal(bank.values[:1], newer)
    torch.testing.assert_close(bank.keys[:1], rms_normalised(newer))
    assert (int(bank.filled), int(bank.access_counts[0]), int(bank.last_used[0])) == (1, 2, 3)
    # Three rows of one batch are one entry too, two more uses of it.
    bank.write(torch.cat([unit(4), 2 * unit(4), 3 * unit(4)]), torch.tensor([0.6, 0.9, 0.7]), 4)
    assert torch.equal(bank.values[1:2], 2 * unit(4))
    assert (int(bank.filled), int(bank.access_counts[1])) == (2, 2)


def test_a_row_like_a_merged_row_does_not_merge_with_it() -> None:
    """30° apart in a row with a limit of 45°: the second merges with the first, the third founds its own entry."""
    bank = make_bank(dedup_threshold=math.cos(math.pi / 4))
    angles = torch.tensor([0.0, 30.0, 60.0, 90.0, 120.0]).deg2rad()
    chain = F.pad(torch.stack([angles.cos(), angles.sin()], 1), (0, D - 2))
    counts = bank.write(chain, torch.tensor([1.0, 0.5, 1.0, 0.5, 1.0]), 1)
    assert (counts.free, counts.merged) == (3, 2)
    assert torch.equal(bank.values[:3], chain[[0, 2, 4]])


@pytest.mark.parametrize("threshold", [1.0, 0.98])
def test_a_copy_always_merges(threshold: float) -> None:
    bank = make_bank(hidden=64, capacity=40, dedup_threshold=threshold)
    entries = torch.randn(20, 64)
    assert bank.write(entries, torch.ones(20), 1).free == 20
    assert bank.write(entries, torch.ones(20), 2).merged == 20


def full_bank() -> MemoryBank:
    """Three slots, all alike in value at step 1."""
    bank = make_bank(capacity=3, top_k=1)
    bank.write(unit(0, 1, 2), torch.ones(3), 1)
    assert int(bank.filled) == 3
    return bank


def replaced(bank: MemoryBank, step: int) -> int:
    before = bank.keys.clone()
    counts = bank.write(unit(7), torch.ones(1), step)
    assert (counts.free, counts.evicting) == (0, 1)
    return int((bank.keys != before).any(1).nonzero())


def test_what_is_replaced() -> None:
    assert replaced(full_bank(), 2) == 0, "the first of equals"

    bank = full_bank()
    bank.quality[:] = torch.tensor([0.9, 0.8, 1.0])
    assert replaced(bank, 2) == 1, "the worst"

    bank = full_bank()
    bank.access_counts[:] = torch.tensor([5, 7, 4])
    assert replaced(bank, 2) == 2, "the least read"

    bank = full_bank()
    bank.last_used[:] = torch.tensor([40, 41, 39])
    assert replaced(bank, 50) == 2, "the longest idle"

    bank = full_bank()
    bank.access_counts[:], bank.written[:] = torch.tensor([20, 5, 20]), torch.tensor([1, 46, 1])
    assert replaced(bank, 50) == 0, "reads per step: the young slot has had four steps for its five reads"


def test_old_fame_fades() -> None:
    """A slot read 200 times long ago goes before one that was read 30 times lately."""
    bank = full_bank()
    bank.access_counts[:] = torch.tensor([200, 0, 200])
    for step in range(10, 10 + 4 * HALF_LIFE, 10):
        bank.query.weight.data.copy_(torch.eye(D))
        bank.read(unit(1, 2)[:, None])
        bank.write(torch.empty(0, D), torch.empty(0), step)
    assert int(bank.access_counts[0]) == 200 // 2**4
    assert replaced(bank, step) == 0


def test_a_burst_larger_than_the_bank_keeps_its_best() -> None:
    bank = make_bank(capacity=3)
    bank.write(unit(7), torch.ones(1), 1)
    counts = bank.write(unit(0, 1, 2, 3, 4, 5), torch.tensor([0.6, 0.9, 0.5, 0.6, 0.8, 0.5]), 2)
    assert counts == WriteCounts(rows=6, free=2, evicting=1, merged=0, dropped=3, refused=0)
    assert sorted(bank.quality.tolist()) == pytest.approx([0.6, 0.8, 0.9])
    assert {int(value.argmax()) for value in bank.values} == {1, 3, 4}, "of the equals (0 and 3) the newer"


def test_numbers_that_are_not_finite_are_refused() -> None:
    bank = make_bank()
    entries = unit(0, 1, 2, 3)
    entries[1, 5] = math.nan
    entries[2, 0] = math.inf
    counts = bank.write(entries, torch.tensor([1.0, 1.0, 1.0, math.nan]), 1)
    assert counts == WriteCounts(rows=4, free=1, evicting=0, merged=0, dropped=0, refused=3)
    assert bank.write(entries[1:3], torch.ones(2), 2).refused == 2
    assert bool(bank.read(torch.randn(2, 2, D)).isfinite().all())


def test_statistics_are_means_over_filled_slots() -> None:
    bank = make_bank(capacity=8)
    assert all(float(value) == 0.0 for name, value in bank.statistics().items() if name != "gate")
    bank.write(unit(0, 1), torch.tensor([0.5, 1.0]), 4)
    bank.write(unit(0, 0), torch.tensor([0.2, 0.2]), 10)
    statistics = {name: float(value) for name, value in bank.statistics().items()}
    gate = statistics.pop("gate")
    assert gate == pytest.approx(float(bank.gate.detach().abs().mean()))
    assert statistics == {
        "filled": 0.25,
        "quality": 0.75,
        "access_count": 1.0,
        "unread": 0.5,
        "idle_steps": 3.0,
        "age_steps": 6.0,
    }


# Ranks ---------------------------------------------------------------------------------------------------------------


def rank_rows(rank: int, round_: int) -> tuple[Tensor, Tensor, Tensor]:
    """(z, entries, quality) of one rank: other numbers and other counts of rows on every rank, some near copies."""
    random = torch.Generator().manual_seed(100 * round_ + rank)
    shared = torch.randn(8, D, generator=torch.Generator().manual_seed(0))
    rows = 0 if round_ == 3 else (2 * rank + round_) % 5
    entries = torch.randn(rows, D, generator=random)
    entries[::2] = shared[torch.randint(8, (len(entries[::2]),), generator=random)] + 0.1 * entries[::2]
    return torch.randn(3, 2, D, generator=random), entries, torch.rand(rows, generator=random)


def digest(bank: MemoryBank) -> str:
    return hashlib.sha256(b"".join(buffer.numpy().tobytes() for buffer in bank.buffers())).hexdigest()


def _rounds(rank: int, world: int) -> list[str]:
    bank = make_bank(capacity=10, top_k=3, key_dim=4)
    digests = []
    for round_ in range(12):
        z, entries, quality = rank_rows(rank, round_)
        bank.read(z)
        if round_ == 5:
            bank.forget_pending()
        bank.write(all_rows(entries), all_rows(quality), 30 * round_)
        digests.append(digest(bank))
    return digests


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_rank_holds_the_same_bank_as_a_single_process(tmp_path: Path, world: int) -> None:
    bank = make_bank(capacity=10, top_k=3, key_dim=4)
    alone = []
    for round_ in range(12):
        z, entries, quality = zip(*(rank_rows(rank, round_) for rank in range(world)), strict=True)
        bank.read(torch.cat(z))
        if round_ == 5:
            bank.forget_pending()
        bank.write(torch.cat(entries), torch.cat(quality), 30 * round_)
        alone.append(digest(bank))
    assert len(set(alone)) == 12
    assert bool(bank.access_counts.any())
    for digests in on_ranks(world, tmp_path, _rounds):
        assert digests == alone


# What it is for ------------------------------------------------------------------------------------------------------


class Looker(nn.Module):
    """A frozen random encoder, the bank, a linear answer of two classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bank = MemoryBank(MemoryConfig.model_validate({"capacity": 32, "num_heads": 2}), 32)
        self.answer = nn.Linear(32, 2)
        self.register_buffer("encoder", torch.randn(16, 32))
        self.register_buffer("class_marks", torch.randn(2, 32))

    def encode(self, x: Tensor) -> Tensor:
        return rms_normalised((x @ self.encoder / 4).tanh())

    def forward(self, x: Tensor) -> Tensor:
        z = self.encode(x)[:, None]
        return self.answer((z + self.bank.read(z))[:, 0])


def episode(model: Looker, step: int, random: torch.Generator, remember: bool) -> tuple[Tensor, Tensor]:
    """32 rows of random classes are remembered (they replace all older ones); 64 rows like them are asked for.

    The classes are drawn anew every time, so nothing but looking the earlier row up can tell them.
    """
    x, classes = torch.randn(32, 16, generator=random), torch.randint(2, (32,), generator=random)
    if remember:
        model.bank.write(model.encode(x) + model.class_marks[classes], torch.ones(32), step)
    which = torch.randint(32, (64,), generator=random)
    return x[which] + 0.2 * torch.randn(64, 16, generator=random), classes[which]


def learn(remember: bool) -> tuple[float, float]:
    """Share of right answers on new episodes after learning, and that of the same weights with an empty bank."""
    model, random = Looker(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(300):
        x, classes = episode(model, step, random, remember)
        optimizer.zero_grad()
        F.cross_entropy(model(x), classes).backward()
        optimizer.step()
    emptied = Looker()
    emptied.load_state_dict(dict(model.named_parameters()), strict=False)
    right, right_emptied = [], []
    for step in range(300, 330):
        x, classes = episode(model.train(), step, random, remember)
        right.append((model.eval()(x).argmax(1) == classes).float().mean())
        right_emptied.append((emptied(x).argmax(1) == classes).float().mean())
    return float(torch.stack(right).mean()), float(torch.stack(right_emptied).mean())


def test_a_model_learns_to_look_the_answer_up() -> None:
    with_bank, emptied = learn(remember=True)
    never_had_one, _ = learn(remember=False)
    assert with_bank > 0.95
    assert 0.45 < emptied < 0.55, "chance"
    assert 0.45 < never_had_one < 0.55, "chance"
