"""Refuse a capsule file that is not complete, not ours, or not honest, before any of its data is read.

An HDF5 file can name other files (external storage, external links, virtual datasets), claim terabytes in a kilobyte,
or inflate a thousandfold. So the file is walked by hand, only as deep as a builder writes and along hard links only:
anything unexpected is refused, and sizes are compared with what is really stored. `inspect_structure` returns what the
reader needs.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from trm_core.data.fields import ENCODERS, FIELDS, PRICES, SPLITS
from trm_core.data.store.attributes import read_attributes
from trm_core.data.store.datasets import Found, examine_dataset, refuse_total
from trm_core.data.store.encoder_arrays import DTYPES, RANKS, refuse_names, refuse_sizes
from trm_core.data.store.layout import Layout
from trm_core.errors import DataError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HINT_REBUILD = "build it again from its source with `trm build-capsules`"
_HINT_TRUNCATED = f"copy it again, or {_HINT_REBUILD}"
_HINT_CONVERT = "convert it with `trm build-capsules FILE --out capsules.h5`"
_MAX_LINKS = 64

# What h5py raises on malformed structures. DataError, which the checks raise, is none of these.
_H5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError)


@dataclass(frozen=True)
class Structure:
    """What is known of a file without reading its datasets."""

    layout: Layout
    rows: dict[str, int]
    manifest: dict[str, Any]
    has_prices: bool
    encoder_arrays: tuple[str, ...] = ()  # "0/components", in the order of their names


def inspect_structure(path: Path) -> Structure:
    """Walk the file at `path`. Raises DataError for whatever is refused, with the file, the dataset and a hint."""
    refuse_non_hdf5(path)
    try:
        with h5py.File(path, "r", locking=False) as h5:
            return _walk(path, h5)
    except _H5_ERRORS as error:
        if "truncated" in str(error):
            raise DataError(f"{path}: is truncated: its end is missing", hint=_HINT_TRUNCATED) from error
        raise DataError(f"{path}: damaged HDF5 structure ({_first_line(error)})", hint=_HINT_REBUILD) from error


def refuse_non_hdf5(path: Path) -> None:
    """Refuse what is not a readable regular file that begins like HDF5."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise DataError(f"{path}: is a folder, not a capsule file", hint="name the .h5 file inside it")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise DataError(f"{path}: is not a regular file", hint="save it as a file first")
        if status.st_size == 0:
            raise DataError(f"{path}: is empty", hint=_HINT_REBUILD)
        with open(path, "rb") as file:
            head = file.read(len(_SIGNATURE))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", hint=_near_names(path)) from None
    except PermissionError:
        raise DataError(f"{path}: no permission to read it", hint=f"chmod u+r {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(f"{path}: cannot be read ({error})", hint="check the path") from error
    if head != _SIGNATURE:
        raise DataError(f"{path}: is not an HDF5 file ({_what_it_is(head)})", hint=_HINT_CONVERT)


def _near_names(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist"
    names = sorted(file.name for file in folder.glob("*.h5"))[:5]
    if names:
        return f"capsule files in {folder}: {', '.join(names)}"
    return "make one with `trm build-capsules SOURCE --out FILE`"


def _what_it_is(head: bytes) -> str:
    if head.startswith(b"PK"):
        return "it begins like a zip: a .pt or .npz"
    if head.startswith(b"\x93NUMPY"):
        return "it is a .npy array"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
        return "it begins like text"
    return "its first bytes are something else"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _walk(path: Path, h5: h5py.File) -> Structure:
    attributes = read_attributes(path, h5)
    names = _hard_links(path, h5.id, "")
    for name in names:
        if name not in (*SPLITS, PRICES, ENCODERS):
            raise DataError(f"{path}: unexpected '/{name}' in it", hint=f"a capsule file holds {', '.join(SPLITS)}")
    seen: set[int] = set()
    found: dict[str, dict[str, Found]] = {}
    for split in SPLITS:
        if split in names:
            group = _open(path, h5.id, split, h5py.h5g.GroupID, "a group", seen)
            found[split] = {
                name: examine_dataset(path, f"{split}/{name}", dataset, FIELDS[name].dtypes, FIELDS[name].ranks)
                for name, dataset in _datasets(path, group, split, seen).items()
            }
    everything = [dataset for fields in found.values() for dataset in fields.values()]
    prices = None
    if PRICES in names:
        dataset = _open(path, h5.id, PRICES, h5py.h5d.DatasetID, "a dataset", seen)
        prices = examine_dataset(path, PRICES, dataset, ("float32",), (1,))
        everything.append(prices)
    recorded: list[Found] = []
    if ENCODERS in names:
        group = _open(path, h5.id, ENCODERS, h5py.h5g.GroupID, "a group", seen)
        recorded = _encoders(path, group, seen)
        everything += recorded
    refuse_total(path, everything)
    layout, rows = _agree(path, found, prices)
    if rows != attributes.rows:
        raise DataError(f"{path}: says it has {attributes.rows} rows but holds {rows}", hint=_HINT_REBUILD)
    arrays = tuple(dataset.name.removeprefix(f"{ENCODERS}/") for dataset in recorded)
    return Structure(layout, rows, attributes.manifest, prices is not None, arrays)


def _datasets(path: Path, group: Any, split: str, seen: set[int]) -> dict[str, Any]:
    datasets = {}
    for name in _hard_links(path, group, split):
        if name not in FIELDS:
            raise DataError(f"{path}: unexpected '{split}/{name}' in it", hint=f"known fields: {', '.join(FIELDS)}")
        datasets[name] = _open(path, group, name, h5py.h5d.DatasetID, "a dataset", seen)
    if "sketches" not in datasets:
        raise DataError(f"{path}: {split} has no sketches", hint=_HINT_REBUILD)
    return datasets


def _encoders(path: Path, group: Any, seen: set[int]) -> list[Found]:
    """The datasets of `encoders/<number>/<name>`."""
    found: list[Found] = []
    numbers = _hard_links(path, group, ENCODERS)
    refuse_names(path, numbers, numbers=True)
    for number in numbers:
        where = f"{ENCODERS}/{number}"
        part = _open(path, group, number, h5py.h5g.GroupID, "a group", seen)
        names = _hard_links(path, part, where)
        refuse_names(path, names, numbers=False)
        for name in names:
            dataset = _open(path, part, name, h5py.h5d.DatasetID, "a dataset", seen)
            found.append(examine_dataset(path, f"{where}/{name}", dataset, DTYPES, RANKS))
    refuse_sizes(path, found)
    return sorted(found, key=lambda dataset: dataset.name)


def _hard_links(path: Path, group: Any, where: str) -> list[str]:
    """Names in a group, all of them hard links."""
    count = group.get_num_objs()
    if count > _MAX_LINKS:
        raise DataError(f"{path}: '/{where}' holds {count} entries", hint=_HINT_REBUILD)
    names = []
    for raw in group:
        name = raw.decode("utf-8", "replace")
        if group.links.get_info(raw).type != h5py.h5l.TYPE_HARD:
            raise DataError(
                f"{path}: '{where}/{name}' is a soft or external link, which may point into another file",
                hint="copy the data itself into the file",
            )
        names.append(name)
    return names


def _open(path: Path, group: Any, name: str, kind: type, kind_name: str, seen: set[int]) -> Any:
    """The object behind a hard link, if it is of the right kind and no other link leads to it (copies, cycles)."""
    opened = h5py.h5o.open(group, name.encode())
    if not isinstance(opened, kind):
        raise DataError(f"{path}: '{name}' is not {kind_name}", hint=_HINT_REBUILD)
    address = h5py.h5o.get_info(opened).addr
    if address in seen:
        raise DataError(f"{path}: '{name}' is the same object as another entry", hint=_HINT_REBUILD)
    seen.add(address)
    return opened


def _agree(path: Path, found: Mapping[str, Mapping[str, Found]], prices: Found | None) -> tuple[Layout, dict[str, int]]:
    """The sizes that all datasets share; DataError naming the two that differ."""
    if not found:
        raise DataError(f"{path}: has none of the splits {', '.join(SPLITS)}", hint=_HINT_REBUILD)
    sizes: dict[str, tuple[int, str]] = {}  # axis -> size and the dataset that said so first
    rows: dict[str, int] = {}
    first_split = next(iter(found))
    for split, fields in found.items():
        if set(fields) != set(found[first_split]):
            raise DataError(
                f"{path}: {split} has the fields {sorted(fields)} but {first_split} has {sorted(found[first_split])}",
                hint=_HINT_REBUILD,
            )
        sizes.pop("N", None)
        for name in (field for field in FIELDS if field in fields):
            dataset = fields[name]
            if len(dataset.shape) != len(found[first_split][name].shape):
                raise DataError(f"{path}: {split}/{name} and {first_split}/{name} differ in rank", hint=_HINT_REBUILD)
            _agree_on_axes(path, dataset, FIELDS[name].axes_of_rank(len(dataset.shape)), sizes)
        rows[split] = sizes["N"][0]
    if prices is not None:
        _agree_on_axes(path, prices, ("k",), sizes)
    fields = found[first_split]
    layout = Layout(
        num_capsules=sizes["k"][0],
        dim=sizes["D"][0],
        num_children=sizes["m"][0] if "m" in sizes else 0,
        checksum_dim=sizes["R"][0] if "R" in sizes else 0,
        label_rank=len(fields["labels"].shape) if "labels" in fields else 0,
        dtypes={name: fields[name].dtype for name in FIELDS if name in fields},
    )
    return layout, rows


def _agree_on_axes(path: Path, dataset: Found, axes: tuple[str, ...], sizes: dict[str, tuple[int, str]]) -> None:
    for axis, size in zip(axes, dataset.shape, strict=True):
        if size < 1:
            raise DataError(f"{path}: {dataset.name} has {axis} = {size}; at least 1 is needed", hint=_HINT_REBUILD)
        known, by = sizes.setdefault(axis, (size, dataset.name))
        if size != known:
            raise DataError(
                f"{path}: {dataset.name} has {axis} = {size} where {by} has {axis} = {known}", hint=_HINT_REBUILD
            )
