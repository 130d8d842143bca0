"""Read the legacy capsule format: a `.pt` file with tensors `sketches`, `checksums`, `children`, `labels`.

Called by the builder, which converts it to a capsule file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trm_core.data.fields import FIELDS, IGNORE_LABEL
from trm_core.data.torch_file import load_tensors
from trm_core.errors import DataError

_NAMES = ("sketches", "checksums", "children", "labels")
_FINITE_ROWS_BYTES = 16 << 20
_HINT = "save it again as torch.save({'sketches': ..., 'children': ..., 'labels': ...}, path), tensors only"


def read_legacy(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays of a legacy file: `sketches` [N, k, D] and, where present, `checksums` [N, k, R], `children` [N, k, m, D]
    (float16 or float32) and `labels` [N] or [N, k] int64.

    Accepts a dict of these names, a bare sketches tensor, or a tuple or list that begins with the sketches (the others
    are told apart by rank and dtype). The arrays are views of the mapped file: pages are read when they are touched.
    Raises DataError for anything else: other objects, damaged files, NaN or infinity, shapes that disagree.
    """
    path = Path(path)
    content, size = load_tensors(path, _HINT)
    tensors = _named(path, content)
    arrays = {name: _array(path, name, tensors[name], size) for name in _NAMES if name in tensors}
    _check_shapes(path, arrays)
    return arrays


def _named(path: Path, content: Any) -> dict[str, torch.Tensor]:
    if isinstance(content, torch.Tensor):
        return {"sketches": content}
    if isinstance(content, tuple | list):
        return _by_rank(path, content)
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__}, not tensors", hint=_HINT)
    tensors = {}
    for name, value in content.items():
        if name not in _NAMES:
            raise DataError(f"{path}: unexpected key {name!r}", hint=f"known keys: {', '.join(_NAMES)}")
        if value is None:
            continue
        tensors[name] = _tensor(path, name, value)
    if "sketches" not in tensors:
        raise DataError(f"{path}: has no tensor 'sketches'", hint=_HINT)
    return tensors


def _by_rank(path: Path, content: tuple[Any, ...] | list[Any]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for index, value in enumerate(content):
        tensor = _tensor(path, f"element {index}", value)
        if index == 0:
            name = "sketches"
        elif not tensor.is_floating_point():
            name = "labels"
        else:
            name = {3: "checksums", 4: "children"}.get(tensor.dim(), "")
        if not name or name in tensors:
            raise DataError(
                f"{path}: cannot tell what element {index} of shape {list(tensor.shape)} is", hint=f"name it: {_HINT}"
            )
        tensors[name] = tensor
    if not tensors:
        raise DataError(f"{path}: holds an empty {type(content).__name__}", hint=_HINT)
    return tensors


def _tensor(path: Path, name: str, value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise DataError(f"{path}: {name} is a {type(value).__name__}, not a tensor", hint=_HINT)
    return value


def _array(path: Path, name: str, tensor: torch.Tensor, size: int) -> np.ndarray:
    where = f"{path}: {name}"
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise DataError(f"{where} is not a dense tensor", hint="save it with .to_dense() or .dequantize()")
    if tensor.dim() not in FIELDS[name].ranks:
        raise DataError(f"{where} has shape {list(tensor.shape)}; expected {FIELDS[name].shape_text()}", hint=_HINT)
    # A tensor may repeat its storage (stride 0) and so claim any size.
    if tensor.numel() * tensor.element_size() > size:
        raise DataError(f"{where} claims {list(tensor.shape)}, more than the file's {size} bytes hold", hint=_HINT)
    if name == "labels":
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise DataError(f"{where} has dtype {tensor.dtype}; expected integers", hint=_HINT)
        labels = tensor.detach().to(torch.int64).numpy()
        bad = np.argwhere((labels < 0) & (labels != IGNORE_LABEL))
        if len(bad):
            raise DataError(f"{where}: row {bad[0][0]}: {labels[tuple(bad[0])]} is a label below 0 (only -100 may be)")
        return labels
    if not tensor.is_floating_point():
        raise DataError(f"{where} has dtype {tensor.dtype}; expected floating point", hint=_HINT)
    if tensor.dtype not in (torch.float16, torch.float32):
        tensor = tensor.to(torch.float32)
    array = tensor.detach().numpy()
    _refuse_non_finite(where, array)
    return array


def _refuse_non_finite(where: str, array: np.ndarray) -> None:
    step = max(1, _FINITE_ROWS_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        finite = np.isfinite(array[start : start + step]).reshape(len(array[start : start + step]), -1).all(1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise DataError(f"{where}: row {row} holds NaN or infinity", hint="remove or repair this sample")


def _check_shapes(path: Path, arrays: dict[str, np.ndarray]) -> None:
    known: dict[str, tuple[int, str]] = {}
    for name, array in arrays.items():
        for axis, size in zip(FIELDS[name].axes_of_rank(array.ndim), array.shape, strict=True):
            if size < 1:
                raise DataError(f"{path}: {name} has {axis} = {size}; at least 1 is needed", hint=_HINT)
            expected, by = known.setdefault(axis, (size, name))
            if size != expected:
                raise DataError(f"{path}: {name} has {axis} = {size} where {by} has {axis} = {expected}", hint=_HINT)
