"""Linear algebra on one thread: the same sums in the same order on any number of cores and in any worker process."""

from __future__ import annotations

from contextlib import AbstractContextManager


def one_thread() -> AbstractContextManager[None]:
    """Limit BLAS and OpenMP to one thread within a `with` block.

    Also faster for many small fits: on a busy machine, threads that wait for each other cost more than they save.
    """
    # The limit reaches only libraries that are loaded already: this brings scipy's BLAS and scikit-learn's OpenMP.
    import sklearn.linear_model  # noqa: F401
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    limits: AbstractContextManager[None] = threadpool_limits(1)
    return limits
