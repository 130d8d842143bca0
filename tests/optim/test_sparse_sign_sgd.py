"""Sign-SGD of the puzzle embeddings against a plain loop; what it must leave alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from torch import Tensor

from trm_core.model.token_embedding import PuzzleEmbedding
from trm_core.optim.sparse_sign_sgd import SparseSignSGD

COUNT, WIDTH = 7, 3
# Small whole numbers, so that sums are exact, and often 0.
GRADIENTS = st.lists(st.integers(-2, 2), min_size=WIDTH, max_size=WIDTH)
ROWS = st.lists(st.tuples(st.integers(0, COUNT - 1), GRADIENTS), max_size=9)


def make(lr: float = 0.01, decay: float = 0.1) -> tuple[PuzzleEmbedding, SparseSignSGD]:
    embedding = PuzzleEmbedding(COUNT, WIDTH)
    embedding.weights.copy_(torch.randn(COUNT, WIDTH, generator=torch.Generator().manual_seed(0)))
    return embedding, SparseSignSGD(embedding, lr, decay)


def learn(embedding: PuzzleEmbedding, rows: list[tuple[int, list[int]]]) -> None:
    """A forward of these identifiers whose gradient is as given."""
    read = embedding(torch.tensor([identifier for identifier, _ in rows], dtype=torch.int64))
    (read * torch.tensor([gradient for _, gradient in rows], dtype=torch.float32).view_as(read)).sum().backward()


def expected(weights: Tensor, rows: list[tuple[int, list[int]]], lr: float, decay: float) -> np.ndarray:
    found = weights.double().numpy().copy()
    for identifier in {identifier for identifier, _ in rows}:
        total = np.sum([gradient for other, gradient in rows if other == identifier], 0)
        found[identifier] = found[identifier] * (1 - lr * decay) - lr * np.sign(total)
    return found


@settings(deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=3), st.floats(0.0, 1.0))
def test_a_step_is_the_loop(parts: list[list[tuple[int, list[int]]]], factor: float) -> None:
    """Identifiers that repeat, within a forward or over the parts of an accumulated batch, have one gradient: the sum.
    A row that was read decays, even where its gradient is 0; others stay as they are to the bit.
    """
    embedding, optimizer = make()
    optimizer.factor = factor
    before = embedding.weights.clone()
    for rows in parts:
        learn(embedding, rows)
    optimizer.step()
    everything = [row for rows in parts for row in rows]
    np.testing.assert_allclose(
        embedding.weights.numpy(), expected(before, everything, 0.01 * factor, 0.1), rtol=1e-6, atol=1e-7
    )
    untouched = [number for number in range(COUNT) if number not in {identifier for identifier, _ in everything}]
    assert torch.equal(embedding.weights[untouched], before[untouched])


def test_the_order_of_the_rows_is_of_no_account() -> None:
    """A GPU adds them in any order, and each process for itself: a sign that differs would part their tables."""
    random = np.random.default_rng(0)
    values = random.normal(size=(300, WIDTH))
    values = np.concatenate([values, -values + 1e-9 * random.choice([-1, 1], size=(300, WIDTH))])
    tables = []
    for order in (np.arange(600), random.permutation(600), random.permutation(600)):
        embedding, optimizer = make()
        learn(embedding, [(3, values[number].tolist()) for number in order])
        optimizer.step()
        tables.append(embedding.weights.clone())
    assert all(torch.equal(table, tables[0]) for table in tables)


def test_what_was_read_is_what_stands_in_the_table() -> None:
    embedding, _ = make()
    identifiers = torch.tensor([4, 0, 4])
    assert torch.equal(embedding(identifiers), embedding.weights[identifiers])
    assert embedding.weights.grad is None
    assert not embedding.weights.requires_grad


def test_a_skipped_step_leaves_nothing_behind() -> None:
    embedding, optimizer = make()
    before = embedding.weights.clone()
    learn(embedding, [(1, [9, 9, 9]), (2, [1, 1, 1])])
    optimizer.forget()
    learn(embedding, [(1, [-1, -1, -1])])
    optimizer.step()
    np.testing.assert_allclose(
        embedding.weights.numpy(), expected(before, [(1, [-1, -1, -1])], 0.01, 0.1), rtol=1e-6, atol=1e-7
    )
    optimizer.forget()
    after = embedding.weights.clone()
    optimizer.step()
    assert torch.equal(embedding.weights, after)


def test_nothing_moves_at_a_rate_of_nothing() -> None:
    embedding, optimizer = make(lr=0.0)
    before = embedding.weights.clone()
    learn(embedding, [(1, [9, 9, 9])])
    optimizer.step()
    assert torch.equal(embedding.weights, before)


def test_a_forward_without_a_backward_moves_nothing() -> None:
    embedding, optimizer = make()
    before = embedding.weights.clone()
    embedding(torch.tensor([1, 2]))
    optimizer.step()
    assert torch.equal(embedding.weights, before)


PARTS: list[list[tuple[int, list[int]]]] = [[(1, [1, 1, 0]), (2, [1, 0, 0])], [(1, [-2, 1, 0])]]


def step_of_rank(rank: int, world: int) -> dict[str, Any]:
    embedding, optimizer = make()
    learn(embedding, PARTS[rank])
    optimizer.step()
    return {"weights": embedding.weights}


def test_processes_add_their_gradients(tmp_path: Path) -> None:
    """Also those with other numbers of rows."""
    found = on_ranks(2, tmp_path, step_of_rank)
    embedding, _ = make()
    together = expected(embedding.weights, [row for rows in PARTS for row in rows], 0.01, 0.1)
    for each in found:
        assert torch.equal(each["weights"], found[0]["weights"])
        np.testing.assert_allclose(each["weights"].numpy(), together, rtol=1e-6, atol=1e-7)
