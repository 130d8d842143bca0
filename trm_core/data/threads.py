"""Linear algebra on one thread: the same sums in the same order on any number of cores and in any worker process."""

from __future__ import annotations

from contextlib import AbstractContextManager


def one_thread() -> AbstractContextManager[None]:
    """Limit BLAS and OpenMP to one thread within a `with` block.

    Also the faster way for many small fits: threads that wait for each other on a busy machine cost more than they do.
    """
    # The limit reaches only libraries that are loaded already: this brings scipy's BLAS and scikit-learn's OpenMP.
    import sklearn.linear_model  # noqa: F401
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    limits: AbstractContextManager[None] = threadpool_limits(1)
    return limits
