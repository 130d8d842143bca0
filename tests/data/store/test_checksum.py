"""The checksum's formula, its scale, and its numbers: files written today must verify for ever."""

from __future__ import annotations

import numpy as np
import pytest

from trm_core.data.checksum import checksums, projection


def test_formula() -> None:
    children = np.random.default_rng(0).normal(size=(5, 3, 4, 6)).astype(np.float32)
    matrix = projection(4, 6, 7, 9)
    result = checksums(children, 7, 9)
    assert result.shape == (5, 3, 7)
    assert result.dtype == np.float32
    for row in range(5):
        for capsule in range(3):
            expected = sum(children[row, capsule, c, d] * matrix[c * 6 + d] for c in range(4) for d in range(6))
            np.testing.assert_allclose(result[row, capsule], expected, rtol=1e-5, atol=1e-6)


def test_scale() -> None:
    """Children of RMS 1 give checksums of standard deviation 1, whatever m and D."""
    for m, dim in ((1, 8), (4, 256)):
        children = np.random.default_rng(1).normal(size=(400, 3, m, dim))
        assert checksums(children, 32, 5).std() == pytest.approx(1, abs=0.15)


def test_numbers_never_change() -> None:
    np.testing.assert_allclose(projection(2, 3, 2, 42)[:2], GOLDEN, rtol=1e-6)
    assert not np.array_equal(projection(2, 3, 2, 42), projection(2, 3, 2, 43))


def test_cached_matrix_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        projection(2, 3, 2, 42)[0, 0] = 1


def test_half_precision_children() -> None:
    children = np.random.default_rng(0).normal(size=(5, 3, 4, 6)).astype(np.float16)
    np.testing.assert_array_equal(checksums(children, 7, 9), checksums(children.astype(np.float32), 7, 9))


@pytest.mark.parametrize("sizes", [(0, 1, 1, 0), (1, 0, 1, 0), (1, 1, 0, 0), (1, 1, 1, -1)])
def test_impossible_sizes(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="projection needs"):
        projection(*sizes)


GOLDEN = [[-0.88092285, -0.51644629], [0.10323585, 0.71119493]]
