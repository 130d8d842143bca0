"""The concept vocabulary against a naive loop and vector-quantize-pytorch, on several ranks, and on clusters."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from torch import Tensor

from trm_core.data.fields import CONTROL_SYMBOLS
from trm_core.keyed_random import Purpose, keyed_uniform
from trm_core.model.concepts import ConceptVocabulary

SEED = 5


def normal(*sizes: int, seed: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def filled(size: int, width: int, mix: float = 0.5, decay: float = 0.9, hidden: int | None = None) -> ConceptVocabulary:
    """A vocabulary with random codes in use."""
    vocabulary = ConceptVocabulary(hidden or width, size, width, mix, decay)
    vocabulary.codebook.copy_(normal(size, width, seed=size))
    vocabulary.ema_counts.copy_(1.0 + torch.rand(size, generator=torch.Generator().manual_seed(size)))
    vocabulary.ema_sums.copy_(vocabulary.codebook * vocabulary.ema_counts[:, None])
    return vocabulary


def digest(vocabulary: ConceptVocabulary) -> str:
    state = [tensor.numpy().tobytes() for tensor in vocabulary.state_dict().values()]
    return hashlib.sha256(b"".join(state)).hexdigest()


class Naive:
    """The same vocabulary in loops over Python lists, in double precision."""

    def __init__(self, size: int, width: int, decay: float) -> None:
        self.size, self.width, self.decay = size, width, decay
        self.codes: list[list[float] | None] = [None] * size
        self.counts = [0.0] * size

    def distances(self, x: list[float]) -> list[float]:
        return [
            math.inf if code is None else sum((a - b) ** 2 for a, b in zip(x, code, strict=True)) for code in self.codes
        ]

    def update(self, rows: list[list[float]], codes: list[int], step: int) -> None:
        for c, code in enumerate(self.codes):
            if code is None:
                continue
            mine = [row for row, chosen in zip(rows, codes, strict=True) if chosen == c]
            count = self.decay * self.counts[c] + (1 - self.decay) * len(mine)
            self.codes[c] = [
                (self.decay * self.counts[c] * code[i] + (1 - self.decay) * sum(row[i] for row in mine)) / count
                for i in range(self.width)
            ]
            self.counts[c] = count
        draws = keyed_uniform(SEED, step, Purpose.REVIVE_CONCEPT, torch.arange(len(rows))).tolist()
        far = [1.0] * len(rows)
        if any(code is not None for code in self.codes):
            far = [self.distances(row)[code] for row, code in zip(rows, codes, strict=True)]
        race = [-math.log1p(-max(u, 2.0**-25)) / w if w else math.inf for u, w in zip(draws, far, strict=True)]
        order = sorted((row for row in range(len(rows)) if far[row]), key=race.__getitem__)
        limit = 0.1 * sum(self.counts) / self.size
        dead = [c for c in range(self.size) if self.counts[c] <= limit]
        for c, row in zip(dead, order[: max(round(self.size / 16), 1)], strict=False):
            self.codes[c], self.counts[c] = rows[row], len(rows) / self.size


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 40),
    width=st.integers(1, 5),
    positions=st.integers(1, 4),
    mix=st.floats(0, 1),
    decay=st.floats(0.05, 0.99),
    padded=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_the_naive_model_agrees(
    size: int, width: int, positions: int, mix: float, decay: float, padded: bool, seed: int
) -> None:
    vocabulary, naive = ConceptVocabulary(width, size, width, mix, decay), Naive(size, width, decay)
    for step in range(6):
        z = 3.0 * normal(4, positions, width, seed=seed + step)
        mask = normal(4, positions, seed=seed - step) > -0.5 if padded else None
        mixed, found = vocabulary(z, mask)
        rows, codes = [], []
        for b in range(4):
            for k in range(positions):
                x = z[b, k].tolist()
                if mask is not None and not mask[b, k]:
                    assert found.ids[b, k] == 0
                    assert found.distance[b, k] == 0
                    assert torch.equal(mixed[b, k], z[b, k])
                    continue
                code = int(found.ids[b, k]) - CONTROL_SYMBOLS
                rows.append(x)
                codes.append(code)
                if step == 0:  # no code yet
                    assert torch.equal(mixed[b, k], z[b, k])
                    assert found.distance[b, k] == 0
                    continue
                distances = naive.distances(x)
                # Rounding may choose the other of two codes that are equally near.
                assert distances[code] == pytest.approx(min(distances), rel=1e-4, abs=1e-4)
                assert float(found.distance[b, k]) == pytest.approx(distances[code] / width, rel=1e-3, abs=1e-4)
                target = [(1 - mix) * a + mix * q for a, q in zip(x, naive.codes[code] or [], strict=True)]
                assert mixed[b, k].tolist() == pytest.approx(target, rel=1e-3, abs=1e-4)
        if not rows:
            return  # nothing was placed, and the loop above expects codes from the first update on
        got_rows, got_codes = found.rows()
        assert (got_rows.tolist(), got_codes.tolist()) == (rows, codes)
        vocabulary.update(got_rows, got_codes, step, SEED)
        naive.update(rows, codes, step)
        assert vocabulary.ema_counts.tolist() == pytest.approx(naive.counts, rel=1e-4, abs=1e-6)
        for code, expected in zip(vocabulary.codebook.tolist(), naive.codes, strict=True):
            assert code == pytest.approx(expected or [0.0] * width, rel=1e-3, abs=1e-4)


@given(seed=st.integers(0, 10_000), mix=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_the_gradient_of_the_mixture_is_the_identity(seed: int, mix: float) -> None:
    vocabulary = filled(8, 6, mix)
    z = normal(3, 4, 6, seed=seed).requires_grad_()
    mask = normal(3, 4, seed=seed) > 0
    upstream = normal(3, 4, 6, seed=seed + 1)
    mixed, found = vocabulary(z, mask)
    (gradient,) = torch.autograd.grad(mixed, z, upstream, retain_graph=True)
    torch.testing.assert_close(gradient, upstream)
    # The commitment pulls z to its code: d/dz mean (z - q)^2 = 2 (z - q) / d, and nothing at padding.
    (pull,) = torch.autograd.grad(found.distance.sum(), z)
    code = vocabulary.codebook[(found.ids - CONTROL_SYMBOLS).clamp(min=0)]
    torch.testing.assert_close(pull, 2 * (z.detach() - code) / 6 * mask[:, :, None])


def test_mix_0_is_the_identity_and_mix_1_gives_codes() -> None:
    z = normal(3, 4, 6, seed=1)
    mixed, _ = filled(8, 6, mix=0.0)(z, None)
    assert torch.equal(mixed, z)
    vocabulary = filled(8, 6, mix=1.0)
    mixed, found = vocabulary(z, None)
    assert torch.equal(mixed, vocabulary.codebook[found.ids - CONTROL_SYMBOLS])
    assert len(found.ids.unique()) > 1


def test_a_narrower_vocabulary_learns_its_projections_from_the_task() -> None:
    vocabulary = filled(8, 3, mix=0.25, hidden=6)
    z = normal(2, 4, 6, seed=1).requires_grad_()
    mixed, found = vocabulary(z, None)
    x = z @ vocabulary.project_in.weight.T
    nearest = torch.cdist(x, vocabulary.codebook).argmin(-1)
    assert torch.equal(found.ids - CONTROL_SYMBOLS, nearest)
    concept = vocabulary.codebook[nearest] @ vocabulary.project_out.weight.T
    torch.testing.assert_close(mixed, 0.75 * z + 0.25 * concept)
    assert found.inputs.shape == (2, 4, 3)
    mixed.square().sum().backward()
    for parameter in vocabulary.parameters():
        assert bool(parameter.grad.any())
    empty = ConceptVocabulary(6, 8, 3, 0.25, 0.9)
    assert torch.equal(empty(z, None)[0], z), "there is nothing to mix with before the first update"


def test_half_precision_does_not_choose_other_codes() -> None:
    vocabulary = filled(512, 8)
    z = normal(16, 16, 8, seed=1)
    _, found = vocabulary(z, None)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, inside = vocabulary(z, None)
    assert torch.equal(inside.ids, found.ids)
    assert mixed.dtype == z.dtype
    narrow, _ = vocabulary(z.bfloat16(), None)
    assert narrow.dtype == torch.bfloat16


def test_the_average_follows_its_formula_and_unused_codes_stay_as_they_are() -> None:
    vocabulary = filled(4, 3, decay=0.8)
    before = {name: tensor.clone() for name, tensor in vocabulary.state_dict().items()}
    x = normal(3, 3, seed=2)
    vocabulary.update(x, torch.tensor([1, 1, 3]), 0, SEED)
    count = 0.8 * before["ema_counts"][1] + 0.2 * 2
    sums = 0.8 * before["ema_sums"][1] + 0.2 * (x[0] + x[1])
    torch.testing.assert_close(vocabulary.ema_counts[1], count)
    torch.testing.assert_close(vocabulary.codebook[1], sums / count)
    assert torch.equal(vocabulary.codebook[[0, 2]], before["codebook"][[0, 2]])
    torch.testing.assert_close(vocabulary.ema_counts[[0, 2]], 0.8 * before["ema_counts"][[0, 2]])


def test_dead_codes_are_put_on_inputs_and_used_ones_are_kept() -> None:
    vocabulary = filled(32, 3, decay=0.9)
    vocabulary.ema_counts[[1, 4]] = 1e-3
    vocabulary.ema_sums[[1, 4]] = vocabulary.codebook[[1, 4]] * 1e-3
    kept = vocabulary.codebook.clone()
    x = 10.0 + normal(5, 3, seed=3)
    vocabulary.update(x, torch.zeros(5, dtype=torch.int64), 7, SEED)
    unused = [c for c in range(32) if c not in (0, 1, 4)]
    assert torch.equal(vocabulary.codebook[unused], kept[unused])
    places = [(x == vocabulary.codebook[c]).all(1).nonzero().flatten().tolist() for c in (1, 4)]
    assert all(len(place) == 1 for place in places)
    assert places[0] != places[1]
    assert vocabulary.ema_counts[[1, 4]].tolist() == pytest.approx([5 / 32, 5 / 32])
    torch.testing.assert_close(vocabulary.ema_sums[1], vocabulary.codebook[1] * 5 / 32)


def test_codes_are_placed_a_sixteenth_at_a_time_by_seed_and_step_where_no_code_is_near() -> None:
    near = normal(40, 3, seed=4)
    codes = torch.zeros(40, dtype=torch.int64)

    def placed(step: int, seed: int) -> Tensor:
        vocabulary = ConceptVocabulary(3, 32, 3, 0.5, 0.99)
        vocabulary.update(near, codes, step, seed)
        assert int((vocabulary.ema_counts > 0).sum()) == 2
        return vocabulary.codebook

    assert torch.equal(placed(3, 1), placed(3, 1))
    assert not torch.equal(placed(3, 1), placed(4, 1))
    assert not torch.equal(placed(3, 1), placed(3, 2))
    for seed in range(20):
        vocabulary = ConceptVocabulary(3, 16, 3, 0.5, 0.99)
        vocabulary.update(torch.zeros(40, 3), codes, 0, seed)
        assert int((vocabulary.ema_counts > 0).sum()) == 1
        vocabulary.update(torch.zeros(40, 3), codes, 1, seed)
        assert int((vocabulary.ema_counts > 0).sum()) == 1, "a twin of a code that all inputs sit on"
        inputs = torch.zeros(40, 3)
        inputs[17] = 9.0  # its code is far away
        vocabulary.update(inputs, codes, 2, seed)
        assert vocabulary.codebook[1].tolist() == [9.0, 9.0, 9.0]


def test_a_new_code_has_time_to_be_used() -> None:
    vocabulary = ConceptVocabulary(3, 8, 3, 0.5, 0.99)
    x, codes = normal(40, 3, seed=4), torch.zeros(40, dtype=torch.int64)
    for step in range(8):
        vocabulary.update(x, codes, step, SEED)
    last = vocabulary.codebook[7].clone()
    lived = 0
    while torch.equal(vocabulary.codebook[7], last) and lived < 300:
        lived += 1
        vocabulary.update(x, codes, 8 + lived, SEED)  # only code 0 is used
    # It starts at the mean use of 40 / 8 and decays; the others that are unused are placed again before it.
    assert lived == pytest.approx(math.log(10) / -math.log(0.99), abs=10)


def test_no_more_codes_are_placed_than_there_are_inputs() -> None:
    vocabulary = ConceptVocabulary(3, 160, 3, 0.5, 0.9)
    for step, alive in ((0, 4), (1, 8), (2, 12)):
        z = normal(2, 2, 3, seed=step)
        vocabulary.update(*vocabulary(z, None)[1].rows(), step, SEED)
        assert int((vocabulary.ema_counts > 0).sum()) == alive
        assert len(vocabulary.codebook[vocabulary.ema_counts > 0].unique(dim=0)) == alive
        assert bool(vocabulary.codebook.isfinite().all())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_inputs_that_are_not_finite_change_nothing(bad: float) -> None:
    vocabulary = filled(4, 3)
    before = digest(vocabulary)
    x = normal(5, 3, seed=5)
    x[2, 1] = bad
    with pytest.raises(AssertionError, match="step 9: inputs of the codebook are not finite"):
        vocabulary.update(x, torch.zeros(5, dtype=torch.int64), 9, SEED)
    vocabulary.update(x[:0], torch.zeros(0, dtype=torch.int64), 9, SEED)
    assert digest(vocabulary) == before


def test_statistics() -> None:
    vocabulary = filled(8, 3)
    vocabulary.ema_counts[2:5] = 0.0
    shares = (0.5, 0.25, 0.25)
    ids = torch.tensor([[4, 4, 5, 11], [0, 0, 0, 3]])  # control symbols and padding do not count
    found = vocabulary.statistics(ids)
    assert found.perplexity == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    assert found.used == 3 / 8
    assert found.dead == 3
    assert vocabulary.statistics(torch.arange(4, 12)).perplexity == pytest.approx(8)
    assert vocabulary.statistics(torch.full((5,), 7)).perplexity == pytest.approx(1)
    nothing = vocabulary.statistics(torch.zeros(2, 2, dtype=torch.int64))
    assert (nothing.perplexity, nothing.used) == (0.0, 0.0)


def step_on(vocabulary: ConceptVocabulary, step: int, rows: slice = slice(None)) -> None:
    """One update from rows of a batch of drifting inputs, some of them padding."""
    z = normal(12, 3, 8, seed=step) + 0.3 * step
    mask = normal(12, 3, seed=step + 1) > -1.0
    vocabulary.update(*vocabulary(z[rows], mask[rows])[1].rows(), step, SEED)


def test_a_stored_state_goes_on_bit_for_bit() -> None:
    straight = ConceptVocabulary(8, 16, 8, 0.5, 0.8)
    for step in range(10):
        step_on(straight, step)
    stored = {name: tensor.clone() for name, tensor in straight.state_dict().items()}
    torch.manual_seed(999)
    resumed = ConceptVocabulary(8, 16, 8, 0.5, 0.8)
    resumed.load_state_dict(stored)
    for step in range(10, 30):
        step_on(straight, step)
        step_on(resumed, step)
    assert digest(straight) == digest(resumed)
    assert not torch.equal(straight.codebook, stored["codebook"])


def _train_on_ranks(rank: int, world: int, poison: bool) -> tuple[dict[str, Tensor], str, bool, list[float]]:
    torch.manual_seed(rank)
    vocabulary = ConceptVocabulary(8, 16, 8, 0.5, 0.8)
    # Ranks hold different numbers of rows; the last one holds what is left.
    share = 12 // (world + 1)
    rows = slice(rank * share, None if rank == world - 1 else (rank + 1) * share)
    for step in range(25):
        step_on(vocabulary, step, rows)
    refused = False
    if poison:
        x = torch.full((3, 8), math.nan if rank == 0 else 1.0)
        try:
            vocabulary.update(x, torch.zeros(3, dtype=torch.int64), 25, SEED)
        except AssertionError:
            refused = True
    found = vocabulary.statistics(torch.tensor([4 + rank, 4 + rank]))
    return vocabulary.state_dict(), digest(vocabulary), refused, [found.perplexity, found.used]


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_end_with_one_codebook_that_one_process_would_have(tmp_path: Path, world: int) -> None:
    results = on_ranks(world, tmp_path, _train_on_ranks, world == 2)
    single = ConceptVocabulary(8, 16, 8, 0.5, 0.8)
    for step in range(25):
        step_on(single, step)
    assert len({digest for _, digest, _, _ in results}) == 1
    for name, tensor in single.state_dict().items():
        # Sums are added in another order: equal up to rounding.
        torch.testing.assert_close(results[0][0][name], tensor, rtol=1e-5, atol=1e-5)
    for _, _, refused, statistics in results:
        assert refused == (world == 2)
        assert statistics == pytest.approx([world, world / 16])


def learn_clusters(vocabulary: ConceptVocabulary, updates: int, seed: int) -> tuple[float, float, list[set[int]]]:
    """After updates on 16 clusters of variance 0.09 in 16 dimensions: the quantisation error relative to that variance,
    the perplexity and the ids of each cluster, on fresh inputs.
    """
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(16, 16, generator=generator)

    def draw(cluster: Tensor) -> Tensor:
        return centres[cluster] + 0.3 * torch.randn(*cluster.shape, 16, generator=generator)

    for step in range(updates):
        z = draw(torch.randint(16, (64, 4), generator=generator))
        vocabulary.update(*vocabulary(z, None)[1].rows(), step, seed)
    _, found = vocabulary(draw(torch.arange(16)[:, None].expand(16, 100)), None)
    ids = [set(row.tolist()) for row in found.ids]
    return float(found.distance.mean()) / 0.09, vocabulary.statistics(found.ids).perplexity, ids


def test_the_codebook_finds_clusters() -> None:
    """Nearly always: k-means has local optima. Placing all codes at once and evenly misses one half of the time."""
    found = 0
    for seed in range(10):
        error, perplexity, ids = learn_clusters(ConceptVocabulary(16, 24, 16, 0.5, 0.9), 200, seed)
        apart = sum(map(len, ids)) == len(set.union(*ids))  # no code serves two clusters
        found += 0.9 < error < 1.1 and 16 * 0.95 < perplexity < 24 and apart
    assert found >= 8


def test_without_revival_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = filled(24, 16, decay=0.9)
    monkeypatch.setattr(vocabulary, "_revive", lambda *arguments: None)
    error, perplexity, ids = learn_clusters(vocabulary, 200, SEED)
    assert error > 1.5
    assert perplexity < 14
    assert sum(map(len, ids)) > len(set.union(*ids))


def test_the_library_quantises_and_averages_alike() -> None:
    library = pytest.importorskip(
        "vector_quantize_pytorch", reason="compares with vector-quantize-pytorch where it is installed"
    )
    ours = filled(12, 6, mix=1.0, decay=0.8)
    # eps 0: the library adds 1e-5 to counts, we do not. Its revival draws from a generator and cannot be compared.
    theirs = library.VectorQuantize(6, 12, decay=0.8, eps=0.0, rotation_trick=False, threshold_ema_dead_code=0)
    theirs._codebook.embed.copy_(ours.codebook[None])
    theirs._codebook.embed_avg.copy_(ours.ema_sums[None])
    theirs._codebook.cluster_size.copy_(ours.ema_counts[None])
    for step in range(8):
        z = normal(10, 4, 6, seed=step).requires_grad_()
        mask = normal(10, 4, seed=step + 100) > -1.0
        mixed, found = ours(z, mask)
        quantised, ids, loss = theirs(z, mask=mask)
        assert torch.equal(found.ids[mask] - CONTROL_SYMBOLS, ids[mask])
        torch.testing.assert_close(mixed[mask], quantised[mask])
        torch.testing.assert_close(found.distance.sum() / mask.sum(), loss)
        upstream = normal(10, 4, 6, seed=step + 50) * mask[:, :, None]
        gradients = [torch.autograd.grad(out, z, upstream, retain_graph=True)[0] for out in (mixed, quantised)]
        torch.testing.assert_close(*gradients)
        pulls = [torch.autograd.grad(loss, z)[0] for loss in (found.distance.sum() / mask.sum(), loss)]
        torch.testing.assert_close(*pulls)
        ours.update(*found.rows(), step, SEED)
        torch.testing.assert_close(ours.ema_counts, theirs._codebook.cluster_size[0])
        torch.testing.assert_close(ours.ema_sums, theirs._codebook.embed_avg[0])
        torch.testing.assert_close(ours.codebook, theirs.codebook, rtol=1e-4, atol=1e-5)
