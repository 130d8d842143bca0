"""Reduces vectors of a pretrained model to D dimensions, scaled so that a training vector has RMS 1 per dimension.

Where D is the model's own width its vectors are only scaled; where it is smaller, the D principal components of the
training vectors are kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trm_core.data.build.encoders import State
from trm_core.data.build.recorded import Arrays
from trm_core.errors import ConfigError, DataError


class Reduction:
    """[n, width] -> [n, dim or fewer]: fewer where `fit` saw fewer vectors than dim."""

    def __init__(self, width: int, dim: int, model: str) -> None:
        """Raises `ConfigError` if dim is above width; `model` names it in that message."""
        if dim > width:
            raise ConfigError(
                f"data.build.dim={dim}, but {model} gives vectors of {width}",
                hint=f"leave data.build.dim at auto, or set it to {width} or less",
            )
        self.width = width
        self.dim = dim
        self._mean = np.zeros(width, dtype=np.float32)
        self._components = np.zeros((0, width), dtype=np.float32)
        self._scale = np.ones((), dtype=np.float32)
        self._kept = 1.0

    def fit(self, vectors: np.ndarray) -> None:
        """Learn from float32 [n, width]. Raises `DataError` if there is only one vector to learn components from."""
        if self.dim < self.width:
            if len(vectors) < 2:
                raise DataError("the training samples hold only one phrase or crop: too few to learn from")
            from sklearn.decomposition import PCA

            # Exact and without randomness: an eigendecomposition of the covariance, width x width.
            pca = PCA(min(self.dim, len(vectors)), svd_solver="covariance_eigh")
            pca.fit(vectors.astype(np.float64))
            self._mean = pca.mean_.astype(np.float32)
            self._components = pca.components_.astype(np.float32)
            self._kept = float(np.nan_to_num(pca.explained_variance_ratio_).sum())
        self._scale = np.ones((), dtype=np.float32)
        rms = float(np.sqrt(np.mean(self.apply(vectors).astype(np.float64) ** 2)))
        self._scale = np.asarray(1.0 / rms if rms > 0 else 1.0, dtype=np.float32)

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """float32 [n, width] -> float32 [n, dim]."""
        if self.dim < self.width:
            vectors = (vectors - self._mean) @ self._components.T
        return (vectors * self._scale).astype(np.float32, copy=False)

    def state(self) -> State:
        state: State = {"scale": self._scale, "kept": np.asarray(self._kept)}
        if self.dim < self.width:
            state |= {"mean": self._mean, "components": self._components}
        return state

    def load_state(self, state: State) -> None:
        """Raises `DataError` if the arrays are not those of a reduction of these sizes."""
        with Arrays(state) as arrays:
            self._scale = arrays.take("scale", "float32", ())
            self._kept = float(arrays.take("kept", "float64", ()))
            if self.dim < self.width:
                self._mean = arrays.take("mean", "float32", (self.width,))
                self._components = arrays.take("components", "float32", (None, self.width))
        if len(self._components) > self.dim:
            raise DataError(f"array components has {len(self._components)} rows, more than the {self.dim} of dim")

    def settings(self) -> dict[str, Any]:
        components = len(self._components) if self.dim < self.width else self.width
        return {"width": self.width, "components": components, "variance_kept": round(self._kept, 4)}
