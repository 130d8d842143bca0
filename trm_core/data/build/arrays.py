"""Embeddings that were made elsewhere: npy, npz and h5 arrays, and legacy `.pt` files.

Arrays are recognised by their names: `children` [N, k, m, D], `sketches` [N, k, D], `checksums` [N, k, R], `labels` [N]
or [N, k], `parents` and `mask` [N, k], `prices` [k]; a single array of another name by its rank (4: children, 3:
sketches). The content of a record is its row of each array except the prices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from trm_core.data.build.array_files import ArrayFile, MemoryArray, open_arrays
from trm_core.data.build.encoders import Encoded, State
from trm_core.data.build.forest import is_forest
from trm_core.data.build.recorded import Arrays, Spec
from trm_core.data.build.records import Log, Record, digest_bytes, label_among
from trm_core.data.fields import FIELDS, IGNORE_LABEL
from trm_core.errors import DataError

_EMBEDDINGS = ("sketches", "children", "checksums")
_BESIDE = ("parents", "mask")
LABEL_ARRAYS = ("labels", "label", "y", "targets", "target")
_FIT_BYTES = 64 << 20
_ONE_HOT = (
    "labels are [N], or [N, k] with one for each capsule: of one-hot rows save labels.argmax(1), of a column [N, 1] "
    "labels[:, 0]"
)


class ArraysReader:
    """One file of arrays. `shapes` holds the shape of each field's rows; `label_rank` is 0, 1 or 2; `prices` is float32
    [k], or None where there are none.
    """

    def __init__(self, path: str, arrays: Mapping[str, ArrayFile], label: str | None, log: Log) -> None:
        self.path = path
        self._fields, self._labels, prices = _roles(path, arrays, label, log)
        self.shapes = {name: array.shape[1:] for name, array in self._fields.items()}
        self.label_rank = 0 if self._labels is None else len(self._labels.shape)
        self.has_labels = self._labels is not None
        _check_shapes(path, self._fields, self._labels)
        capsules = next(shape[0] for shape in self.shapes.values())
        self.prices = None if prices is None else _checked_prices(path, prices, capsules)

    def records(self, *, digests: bool) -> Iterator[Record]:
        names = list(self._fields)
        streams = [array.rows() for array in self._fields.values()]
        labels: Iterator[Any] = iter(()) if self._labels is None else self._labels.rows()
        for number, rows in enumerate(zip(*streams, strict=True)):
            content = dict(zip(names, rows, strict=True))
            for name, row in content.items():
                if digests and not np.isfinite(row).all():
                    raise DataError(
                        f"{self.path}: {name}: row {number} holds NaN or infinity", hint="remove or repair it"
                    )
                if digests and name == "parents" and not is_forest(row):
                    raise DataError(
                        f"{self.path}: parents: row {number} is {row.tolist()}: not a hierarchy",
                        hint="each is the index of another capsule of the sample, or -1 for a root; no circles",
                    )
            if digests and (fault := mask_fault(content)) is not None:
                raise DataError(f"{self.path}: mask: row {number} {fault}", hint="true: a capsule; false: padding")
            digest = digest_bytes(*(np.ascontiguousarray(row).tobytes() for row in rows)) if digests else 0
            label: str | None = None
            if self._labels is not None:
                value = next(labels)
                if self.label_rank == 2:
                    content["labels"] = np.where(content["mask"], value, IGNORE_LABEL) if "mask" in content else value
                else:
                    label = class_name(value)
            yield Record(content, digest, label)


class ArraysEncoder:
    """Passes embeddings through; `shapes` are the row shapes of each field, which every source must have."""

    name = "none"
    default_sketch = "mean"

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], label_rank: int = 0) -> None:
        self.shapes = dict(shapes)
        self.num_capsules, *_, self.dim = shapes.get("children") or shapes["sketches"]
        self.num_children = shapes["children"][1] if "children" in shapes else 0
        self.given_checksums = 0 if self.num_children else shapes.get("checksums", (0, 0))[1]
        self.label_rank = 2 if label_rank == 2 else 1
        self.parents, self.masks = "parents" in shapes, "mask" in shapes
        row_bytes = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
        self.fit_rows = max(1, min(20_000, _FIT_BYTES // row_bytes))
        self._names = sorted(shapes)

    def fit(self, contents: Sequence[Any], seed: int) -> None:
        """Nothing to learn."""

    def encode(self, contents: Sequence[Mapping[str, np.ndarray]]) -> Encoded:
        fields = {
            name: np.stack([content[name] for content in contents]).astype(np.float32)
            for name in self._names
            if name in _EMBEDDINGS
        }
        labels = parents = child_mask = None
        if self.masks:
            mask = np.stack([content["mask"] for content in contents]).astype(bool)
            for values in fields.values():
                values[~mask] = 0.0  # whatever the padding was filled with
            child_mask = np.repeat(mask[:, :, None], max(1, self.num_children), axis=2)
        if self.parents:
            parents = np.stack([content["parents"] for content in contents]).astype(np.int64)
        if self.label_rank == 2:
            labels = np.stack([content["labels"] for content in contents]).astype(np.int64)
        return Encoded(
            fields.get("children"), child_mask, fields.get("sketches"), fields.get("checksums"), labels, parents
        )

    def state(self) -> State:
        return {}

    def load_state(self, state: State) -> None:
        """Nothing to restore."""
        Arrays(state).close()

    def settings(self) -> dict[str, Any]:
        return {"arrays": self._names}

    def spec(self) -> dict[str, Any]:
        """Labels are not part of it: a sample is encoded without them."""
        return {name: list(self.shapes[name]) for name in self._names}

    @classmethod
    def from_spec(cls, spec: Spec) -> Self:
        shapes = {name: spec.wholes(name) for name in (*_EMBEDDINGS, *_BESIDE) if name in spec}
        spec.close()
        if "sketches" not in shapes and "children" not in shapes:
            raise DataError(f"{spec.what} has neither sketches nor children")
        sizes: dict[str, int] = {}
        for name, shape in shapes.items():
            if len(shape) + 1 not in FIELDS[name].ranks:
                raise DataError(f"{spec.what}: {name} has shape {list(shape)}, expected {FIELDS[name].shape_text()}")
            for axis, size in zip(FIELDS[name].axes_of_rank(len(shape) + 1)[1:], shape, strict=True):
                if sizes.setdefault(axis, size) != size:
                    raise DataError(f"{spec.what}: its shapes disagree in {axis}: {shapes}")
        return cls(shapes)


def array_reader(path: str, label: str | None, log: Log) -> ArraysReader:
    """Open an npy, npz or h5 file."""
    return ArraysReader(path, open_arrays(Path(path)), label, log)


def legacy_reader(path: str, label: str | None, log: Log) -> ArraysReader:
    """Open a legacy `.pt` file (imports torch)."""
    from trm_core.data.legacy import read_legacy

    arrays = {name: MemoryArray(name, values) for name, values in read_legacy(path).items()}
    log(f"{path}: legacy file with {', '.join(arrays)}")
    return ArraysReader(path, arrays, label, log)


def _roles(
    path: str, arrays: Mapping[str, ArrayFile], label: str | None, log: Log
) -> tuple[dict[str, ArrayFile], ArrayFile | None, ArrayFile | None]:
    """Which array is which field, which one holds the labels, and which one the prices."""
    left = dict(arrays)
    name = label_among(left, label, LABEL_ARRAYS)
    if name is not None and name not in left:
        raise DataError(f"{path}: has no array {name!r}; there are: {', '.join(left)}")
    labels = left.pop(name) if name is not None else None
    if label is not None and name is None:
        dropped = [other for other in LABEL_ARRAYS if left.pop(other, None) is not None]
        log(f"{path}: {', '.join(dropped) or 'nothing'} ignored, as requested: concepts are the targets")
    fields = {field: left.pop(field) for field in _EMBEDDINGS if field in left}
    beside = {field: left.pop(field) for field in _BESIDE if field in left}
    prices = left.pop("prices", None)
    if not fields and len(left) == 1:
        other, array = left.popitem()
        rank = len(array.shape)
        if rank not in (3, 4):
            raise DataError(
                f"{path}: {other} has shape {list(array.shape)}",
                hint="reshape it to [N, k, m, D] (children) or [N, k, D]",
            )
        fields["children" if rank == 4 else "sketches"] = array
        log(f"{path}: {other} {list(array.shape)} taken as {'children' if rank == 4 else 'sketches'}")
    if "sketches" not in fields and "children" not in fields:
        there = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise DataError(
            f"{path}: which array holds the embeddings? There are: {there}", hint="call it children or sketches"
        )
    if left:
        log(f"{path}: not used: {', '.join(left)}")
    if "checksums" in fields and "children" in fields:
        del fields["checksums"]
        log(f"{path}: its checksums are replaced by ours, which can be verified")
    return fields | beside, labels, prices


def _check_shapes(path: str, fields: Mapping[str, ArrayFile], labels: ArrayFile | None) -> None:
    sizes: dict[str, tuple[int, str]] = {}
    named = dict(fields) | ({} if labels is None else {"labels": labels})
    for name, array in named.items():
        where = f"{path}: {array.name}"
        if len(array.shape) not in FIELDS[name].ranks:
            raise DataError(f"{where} has shape {list(array.shape)}, expected {FIELDS[name].shape_text()} for {name}")
        kinds = {"labels": "iubUf", "parents": "iu", "mask": "biu"}.get(name, "fiu")
        if array.dtype.kind not in kinds or (
            name == "labels" and len(array.shape) == 2 and array.dtype.kind not in "iu"
        ):
            raise DataError(
                f"{where} has dtype {array.dtype}, which cannot be {name}",
                hint=_ONE_HOT if name == "labels" and len(array.shape) == 2 else None,
            )
        for axis, size in zip(FIELDS[name].axes_of_rank(len(array.shape)), array.shape, strict=True):
            if size < 1:
                raise DataError(f"{where} has {axis} = {size}; at least 1 is needed")
            expected, by = sizes.setdefault(axis, (size, name))
            if size != expected:
                raise DataError(
                    f"{where} has {axis} = {size} where {by} has {axis} = {expected}",
                    hint=_ONE_HOT if name == "labels" and axis == "k" else None,
                )


def _checked_prices(path: str, array: ArrayFile, capsules: int) -> np.ndarray:
    where = f"{path}: {array.name}"
    if array.shape != (capsules,) or array.dtype.kind not in "fiu":
        raise DataError(
            f"{where} is {array.dtype} {list(array.shape)}, expected numbers [{capsules}], one for each capsule",
            hint="bring them to that form, or leave them out: then every price is 1",
        )
    prices = np.array(list(array.rows()), np.float32)
    if not (np.isfinite(prices) & (prices > 0)).all():
        raise DataError(f"{where} are {prices.tolist()}; they must be finite and above 0", hint="0.001 is nearly free")
    return prices


def mask_fault(content: Mapping[str, np.ndarray]) -> str | None:
    """What is wrong with the mask of one sample, also in view of its parents; None if nothing is or it has none."""
    if "mask" not in content:
        return None
    mask = content["mask"].astype(bool)
    if not np.isin(content["mask"], (0, 1)).all():
        return f"is {content['mask'].tolist()}: neither true nor false"
    if not mask.any():
        return "has no capsule, only padding"
    parents = content["parents"][mask] if "parents" in content else np.full(1, -1)
    if not mask[parents[parents >= 0]].all():
        return "marks the parent of a capsule as padding"
    return None


def class_name(value: Any) -> str | None:
    """A label as a class name: integers without a decimal point; -100 and NaN are no label."""
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, str):
        return plain or None
    if isinstance(plain, float):
        if np.isnan(plain):
            return None
        plain = int(plain) if plain.is_integer() else plain
    return None if plain == IGNORE_LABEL else str(plain)
