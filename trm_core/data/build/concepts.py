"""Targets for sources without labels: each capsule's concept, the k-means id of its full detail.

Fitted on capsules of the training split. A concept c is stored as label id c + 4: ids 0..3 are the control symbols.
"""

from __future__ import annotations

import hashlib
import warnings

import numpy as np

from trm_core.data.build.records import Log
from trm_core.data.fields import CONTROL_SYMBOLS, IGNORE_LABEL
from trm_core.errors import DataError

_FIT_BYTES = 64 << 20
_FIT_CAPSULES_PER_CONCEPT = 100


class Concepts:
    """The fitted centres. `detail` is float [n, k, width] throughout: the flattened children (or the sketches)."""

    def __init__(self, centres: np.ndarray) -> None:
        self.centres = centres

    @property
    def count(self) -> int:
        return len(self.centres)

    def sha256(self) -> str:
        """Equal for sets of concepts in which every number means the same."""
        return hashlib.sha256(self.centres.astype("<f4").tobytes()).hexdigest()

    def label(self, detail: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """int64 [n, k]: concept id + 4, or -100 where `mask` is false."""
        n, k, width = detail.shape
        flat = detail.reshape(n * k, width).astype(np.float32)
        # |x - c|^2 without |x|^2, which is the same for every centre.
        distance = np.sum(self.centres**2, axis=1) - 2.0 * (flat @ self.centres.T)
        labels = distance.argmin(axis=1).reshape(n, k).astype(np.int64) + CONTROL_SYMBOLS
        if mask is not None:
            labels[~mask] = IGNORE_LABEL
        return labels


def capsules_to_fit(num_concepts: int, width: int) -> int:
    """How many training capsules of `width` values are enough, within a memory bound."""
    return max(num_concepts, min(_FIT_CAPSULES_PER_CONCEPT * num_concepts, _FIT_BYTES // (4 * width)))


def fit_concepts(capsules: np.ndarray, num_concepts: int, seed: int, log: Log) -> Concepts:
    """Cluster capsules [n, width]. With fewer distinct points than concepts there are fewer concepts, and the log says
    so.

    Raises `DataError` if all capsules are alike: there is nothing to predict.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    points = np.unique(capsules.astype(np.float32), axis=0)
    distinct = len(points)
    if distinct < 2:
        raise DataError(
            "every capsule of the training split has the same detail, so concepts cannot be targets",
            hint="check the source, or give a label column with data.build.label",
        )
    if distinct < num_concepts:
        log(f"num_concepts reduced from {num_concepts} to {distinct}: there are no more distinct capsules in training")
        return Concepts(points)
    kmeans = MiniBatchKMeans(
        n_clusters=num_concepts, random_state=seed % 2**32, batch_size=4096, n_init=1, max_iter=50, init="k-means++"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans.fit(capsules.astype(np.float32))
    return Concepts(kmeans.cluster_centers_.astype(np.float32))
