"""Pictures to capsules: a lattice of cells, each with sub-cells, as raw pixels or as the PCA of their patches.

`pixels` keeps every value of a sub-cell; `patch-pca` keeps the D principal components of the sub-cells of a sample of
training pictures, scaled so that a training patch has RMS 1 per dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from trm_core.data.build.encoders import Encoded, State
from trm_core.data.build.lattice import Lattice
from trm_core.data.build.pictures import to_picture
from trm_core.data.build.recorded import Arrays, Spec
from trm_core.errors import DataError

MAX_PIXEL_DIM = 64
_FIT_BYTES = 64 << 20
_FIT_PATCHES = 20_000
_PCA_BATCH = 4096
_MAX_SIDE, _MAX_PIXELS = 1 << 20, 1 << 28  # limits for a recorded encoder
_MAX_CHANNELS = 256


class PictureEncoder:
    """What all encoders of pictures share: pictures in, patches [n, k, m, values] out."""

    name = ""
    default_sketch = "mean"
    masks = False
    parents = True
    label_rank = 1
    given_checksums = 0

    def __init__(self, lattice: Lattice, channels: int, dim: int) -> None:
        self.lattice = lattice
        self.channels = channels
        self.dim = dim
        self.num_capsules = lattice.num_capsules
        self.num_children = lattice.num_children
        self.fit_rows = max(1, min(4096, _FIT_BYTES // (4 * lattice.height * lattice.width * channels)))

    def patches(self, contents: Sequence[Any]) -> np.ndarray:
        pictures = np.stack([to_picture(content) for content in contents])
        expected = (self.lattice.height, self.lattice.width, self.channels)
        if pictures.shape[1:] != expected:
            raise DataError(
                f"these pictures are {_size(pictures.shape[1:])}, the first ones were {_size(expected)}",
                hint="give data.build.image_size to bring all to one size",
            )
        return self.lattice.cut(pictures)

    def _encoded(self, children: np.ndarray) -> Encoded:
        """Children [n, k, m, width], widened to D, with the quadtree of the cells as their hierarchy."""
        parents = np.tile(self.lattice.parents, (len(children), 1))
        return Encoded(_widen(children, self.dim), parents=parents)

    def settings(self) -> dict[str, Any]:
        return {
            "picture": [self.lattice.height, self.lattice.width, self.channels],
            "padded": list(self.lattice.padded),
            "cells": list(self.lattice.cells),
            "subcells": list(self.lattice.subcells),
            "subcell_pixels": list(self.lattice.subcell_shape),
        }

    def spec(self) -> dict[str, Any]:
        return spec_of_lattice(self.lattice) | {"channels": self.channels, "dim": self.dim}


class _FixedPictureEncoder(PictureEncoder):
    """An encoder made from a lattice, channels and D alone."""

    @classmethod
    def from_spec(cls, spec: Spec) -> Self:
        lattice = recorded_lattice(spec)
        made = cls(lattice, spec.whole("channels", 1, _MAX_CHANNELS), spec.whole("dim"))
        spec.close()
        return made

    @property
    def patch_values(self) -> int:
        rows, columns = self.lattice.subcell_shape
        return rows * columns * self.channels


class PixelEncoder(_FixedPictureEncoder):
    """Children are the raw pixels of their sub-cell in [0, 1]; nothing is fitted."""

    name = "pixels"

    def fit(self, contents: Sequence[Any], seed: int) -> None:
        """Nothing to learn."""

    def encode(self, contents: Sequence[Any]) -> Encoded:
        return self._encoded(self.patches(contents))

    def state(self) -> State:
        return {}

    def load_state(self, state: State) -> None:
        """Nothing to restore."""
        Arrays(state).close()
        if self.patch_values > self.dim:
            raise DataError(f"a sub-cell has {self.patch_values} values, more than the {self.dim} of dim")


class PatchPCAEncoder(_FixedPictureEncoder):
    """Children are sub-cells projected on the principal components of training sub-cells."""

    name = "patch-pca"

    def __init__(self, lattice: Lattice, channels: int, dim: int) -> None:
        super().__init__(lattice, channels, dim)
        self._mean = np.zeros(0, dtype=np.float32)
        self._components = np.zeros((0, 0), dtype=np.float32)
        self._scale = np.ones((), dtype=np.float32)
        self._kept = 0.0

    def fit(self, contents: Sequence[Any], seed: int) -> None:
        from sklearn.decomposition import IncrementalPCA

        patches = self.patches(contents)
        patches = patches.reshape(-1, patches.shape[-1])
        rng = np.random.default_rng([seed % 2**63, 0x9CA])
        if len(patches) > _FIT_PATCHES:
            patches = patches[np.sort(rng.choice(len(patches), _FIT_PATCHES, replace=False))]
        components = min(self.dim, patches.shape[1], len(patches))
        pca = IncrementalPCA(n_components=components)
        # partial_fit refuses a last batch smaller than the number of components, so batches are of equal size.
        with np.errstate(invalid="ignore"):  # identical patches have no shares of variance
            for batch in np.array_split(patches, max(1, len(patches) // max(_PCA_BATCH, components))):
                pca.partial_fit(batch)
        self._mean = pca.mean_.astype(np.float32)
        self._components = pca.components_.astype(np.float32)
        coded = (patches - self._mean) @ self._components.T
        rms = float(np.sqrt(np.mean(coded**2)))
        self._scale = np.asarray(1.0 / rms if rms > 0 else 1.0, dtype=np.float32)
        self._kept = float(np.nan_to_num(pca.explained_variance_ratio_).sum())  # NaN: all patches are identical

    def encode(self, contents: Sequence[Any]) -> Encoded:
        coded = ((self.patches(contents) - self._mean) @ self._components.T) * self._scale
        return self._encoded(coded)

    def state(self) -> State:
        return {
            "mean": self._mean,
            "components": self._components,
            "scale": self._scale,
            "kept": np.asarray(self._kept),
        }

    def load_state(self, state: State) -> None:
        with Arrays(state) as arrays:
            self._mean = arrays.take("mean", "float32", (self.patch_values,))
            self._components = arrays.take("components", "float32", (None, self.patch_values))
            self._scale = arrays.take("scale", "float32", ())
            self._kept = float(arrays.take("kept", "float64", ()))
        if len(self._components) > self.dim:
            raise DataError(f"array components has {len(self._components)} rows, more than the {self.dim} of dim")

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"components": len(self._components), "variance_kept": round(self._kept, 4)}


def spec_of_lattice(lattice: Lattice) -> dict[str, Any]:
    return {
        "height": lattice.height,
        "width": lattice.width,
        "cells": list(lattice.cells),
        "subcells": list(lattice.subcells),
    }


def recorded_lattice(spec: Spec) -> Lattice:
    """The lattice in a recorded spec. Raises `DataError` for more cells than pixels."""
    lattice = Lattice(
        spec.whole("height", 1, _MAX_SIDE), spec.whole("width", 1, _MAX_SIDE), spec.pair("cells"), spec.pair("subcells")
    )
    if lattice.height * lattice.width > _MAX_PIXELS:
        raise DataError(f"{spec.what}: pictures of {lattice.height} x {lattice.width} are beyond any that is decoded")
    for axis, size in enumerate((lattice.height, lattice.width)):
        if lattice.cells[axis] * lattice.subcells[axis] > size:
            raise DataError(f"{spec.what}: more cells than pixels: {lattice}")
    return lattice


def _widen(children: np.ndarray, dim: int) -> np.ndarray:
    if children.shape[-1] == dim:
        return children.astype(np.float32, copy=False)
    wide = np.zeros((*children.shape[:-1], dim), dtype=np.float32)
    wide[..., : children.shape[-1]] = children
    return wide


def _size(shape: Sequence[int]) -> str:
    height, width, channels = shape
    return f"{height} x {width} with {channels} channel(s)"
