"""What an encoder is, and what every encoder's output goes through: sketch, padding, checksum.

An encoder is fitted on a bounded sample of the training split and then turns the contents of a chunk of records into
children. `Layout.finish` turns these into the stored fields. Encoders are plain picklable objects, so that each worker
process gets them once; their arrays are kept in the work directory, so that a killed build resumes with the same
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

import numpy as np

from trm_core.data.build.recorded import MAX_VALUES, Spec
from trm_core.data.checksum import checksums
from trm_core.errors import DataError

State = dict[str, np.ndarray]
SKETCHES = ("mean", "leading", "none")


@dataclass
class Encoded:
    """A chunk of samples as encoded.

    children: float32 [n, k, m, D], or None where the source holds only sketches; child_mask: bool [n, k, m], True for
    a real child (None: all); parents: int64 [n, k], where the encoder knows a hierarchy. Only where the source itself
    gives them (arrays), else None: sketches [n, k, D], checksums [n, k, R], labels int64 [n, k].
    """

    children: np.ndarray | None
    child_mask: np.ndarray | None = None
    sketches: np.ndarray | None = None
    checksums: np.ndarray | None = None
    labels: np.ndarray | None = None
    parents: np.ndarray | None = None


class Encoder(Protocol):
    """One modality's encoder.

    num_children is 0 and children are None where the source holds only sketches. `masks`: some capsules may be padding.
    `parents`: the encoder gives a hierarchy of capsules. `fit_rows`: the most training samples that `fit` wants.
    `label_rank` is 2 where the source labels every capsule. `given_checksums`: width of the checksums that the source
    itself holds, 0 for none.

    `spec()` is JSON (texts, numbers, lists, objects) from which `from_spec` makes the encoder again, unfitted;
    `state()` is what `fit` learned, as plain numeric arrays, and `load_state` restores it. Both are kept in the capsule
    file, so `from_spec` and `load_state` check everything they get and raise `DataError`.
    """

    name: str
    num_capsules: int
    num_children: int
    dim: int
    default_sketch: str
    fit_rows: int
    masks: bool
    parents: bool
    label_rank: int
    given_checksums: int

    def fit(self, contents: Sequence[Any], seed: int) -> None: ...

    def encode(self, contents: Sequence[Any]) -> Encoded: ...

    def state(self) -> State: ...

    def load_state(self, state: State) -> None: ...

    def settings(self) -> dict[str, Any]: ...

    def spec(self) -> dict[str, Any]: ...

    @classmethod
    def from_spec(cls, spec: Spec) -> Self: ...


@dataclass(frozen=True)
class Layout:
    """The shape of the file that is being built: k, m, D, R, and how sketches are made."""

    num_capsules: int
    num_children: int
    dim: int
    checksum_dim: int
    sketch: str
    checksum_seed: int
    dtype: str
    with_mask: bool
    sketch_dims: int  # leading dimensions that sketch=leading keeps
    with_parents: bool = False

    def spec(self) -> dict[str, Any]:
        """JSON from which `from_spec` makes it again."""
        return asdict(self)

    @classmethod
    def from_spec(cls, spec: Spec) -> Layout:
        """Raises `DataError` for sizes that no file has."""
        layout = cls(
            num_capsules=spec.whole("num_capsules"),
            num_children=spec.whole("num_children", 0),
            dim=spec.whole("dim"),
            checksum_dim=spec.whole("checksum_dim", 0),
            sketch=spec.text("sketch", SKETCHES),
            checksum_seed=spec.whole("checksum_seed", 0, 2**31 - 1),
            dtype=spec.text("dtype", ("float16", "float32")),
            with_mask=spec.yes("with_mask"),
            sketch_dims=spec.whole("sketch_dims"),
            with_parents=spec.yes("with_parents"),
        )
        spec.close()
        detail = max(1, layout.num_children) * layout.dim
        if max(layout.num_capsules, layout.checksum_dim) * detail > MAX_VALUES:
            raise DataError(f"{spec.what}: its sizes are beyond any that is built: {layout}")
        return layout

    def finish(self, encoded: Encoded) -> dict[str, np.ndarray]:
        """The stored fields of a chunk: sketches, children, checksums, mask, parents, padded to the file's k, m and D.

        Raises `DataError` if a value does not fit the stored precision.
        """
        mask: np.ndarray | None = None
        given = encoded.children if encoded.children is not None else encoded.sketches
        assert given is not None
        n, k = given.shape[:2]
        if self.with_mask:
            mask = np.zeros((n, self.num_capsules), dtype=bool)
            mask[:, :k] = True if encoded.child_mask is None else encoded.child_mask.any(axis=2)
        sketches = encoded.sketches if encoded.sketches is not None else self._sketch(encoded)
        fields = {"sketches": _pad(sketches, (self.num_capsules, self.dim))}
        if self.num_children:
            assert encoded.children is not None
            fields["children"] = _pad(encoded.children, (self.num_capsules, self.num_children, self.dim))
        fields = {name: self._store(name, values) for name, values in fields.items()}
        if self.checksum_dim and self.num_children:
            # Computed from the stored values, so that a reader who recomputes them gets the same numbers.
            values = checksums(fields["children"], self.checksum_dim, self.checksum_seed)
            fields["checksums"] = self._store("checksums", values)
        elif self.checksum_dim and encoded.checksums is not None:
            fields["checksums"] = self._store("checksums", encoded.checksums)
        if mask is not None:
            fields["mask"] = mask
        if self.with_parents:
            fields["parents"] = self._parents(encoded, n, k, mask)
        return fields

    def _parents(self, encoded: Encoded, n: int, k: int, mask: np.ndarray | None) -> np.ndarray:
        """int64 [n, K]; padding, and samples of an encoder that knows no hierarchy, have no parents."""
        parents = np.full((n, self.num_capsules), -1, dtype=np.int64)
        if encoded.parents is not None:
            parents[:, :k] = encoded.parents
        if mask is not None:
            parents[~mask] = -1
            orphans = (parents >= 0) & ~np.take_along_axis(mask, np.maximum(parents, 0), axis=1)
            assert not orphans.any(), f"parents that are padding: {np.argwhere(orphans)[:5].tolist()}"
        return parents

    def _sketch(self, encoded: Encoded) -> np.ndarray:
        children = encoded.children
        assert children is not None
        n, k, _, dim = children.shape
        if self.sketch == "none":
            return np.zeros((n, k, dim), dtype=np.float32)
        if encoded.child_mask is None:
            mean = children.mean(axis=2, dtype=np.float32)
        else:
            real = encoded.child_mask[..., None]
            mean = (children * real).sum(axis=2, dtype=np.float32) / np.maximum(real.sum(axis=2), 1)
        if self.sketch == "leading":
            mean[..., self.sketch_dims :] = 0.0
        return mean.astype(np.float32, copy=False)

    def _store(self, name: str, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            stored = values.astype(self.dtype)
        if self.dtype == "float16" and not np.isfinite(stored).all() and np.isfinite(values).all():
            raise DataError(
                f"{name} reach {np.abs(values).max():.3g}, more than float16 can hold",
                hint="set data.build.dtype=float32",
            )
        return stored


def _pad(values: np.ndarray, inner: tuple[int, ...]) -> np.ndarray:
    """Zero-pad the axes after the first up to `inner`."""
    if values.shape[1:] == inner:
        return values
    padded = np.zeros((len(values), *inner), dtype=values.dtype)
    padded[tuple(slice(0, size) for size in values.shape)] = values
    return padded
