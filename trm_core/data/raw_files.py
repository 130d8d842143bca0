"""Raw samples from files as people have them: pictures, folders of them, arrays, ARC tasks, tables and texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from trm_core.data.build.arc import load_json, looks_like_arc, raw_tasks
from trm_core.data.build.array_files import ArrayFile, open_arrays
from trm_core.data.build.arrays import LABEL_ARRAYS, array_reader, class_name
from trm_core.data.build.delimited import open_delimited, text_lines
from trm_core.data.build.images import IMAGE_ARRAYS, IMAGE_SUFFIXES, picture_files
from trm_core.data.build.records import Log, silent
from trm_core.data.build.text import text_files, whole_text
from trm_core.data.raw_rows import Raw, Wanted, arc_samples, json_lines, known_class, of_lines, of_value, task_samples
from trm_core.errors import DataError

_JSON_LINES = (".jsonl", ".ndjson")
_TABLES = (".csv", ".tsv")
_ARRAYS = (".npz", ".npy")
_TAKES = {
    "text": "a file with a text on each line, .csv, .tsv or .jsonl, or a folder of .txt files",
    "table": "a .csv, .tsv or .jsonl",
    "images": "picture files, a folder of them, an .npz or .npy, or a .jsonl of paths",
    "digits": "an .npz, .npy or .jsonl of 8 x 8 numbers from 0 to 16",
    "arc": "the .json of a task, a folder of them, or a .jsonl",
    "arrays": "an .npz, .npy or .jsonl with the arrays that the training data had",
    "legacy": "an .npz, .npy or .jsonl with the arrays that the training data had",
}


def raw_samples(path: Path, wanted: Wanted, log: Log = silent) -> Iterator[Raw]:
    """The samples of a file or folder, in order. Raises `DataError` that names the file, and the line where there is
    one, for what a model of `wanted.kind` cannot answer.
    """
    return _reader_of(path, wanted)(path, wanted, log)


def _reader_of(path: Path, wanted: Wanted) -> Callable[[Path, Wanted, Log], Iterator[Raw]]:
    kind, suffix = wanted.kind, path.suffix.lower()
    if path.is_dir():
        readers = {"images": _folder, "text": _texts, "arc": _tasks}
        if kind in readers:
            return readers[kind]
        raise _refused(path, "a folder", kind)
    if suffix in _JSON_LINES:
        return lambda path, wanted, log: json_lines(str(path), text_lines(path), wanted)
    if suffix in _TABLES and kind in ("text", "table", "images"):
        return _rows
    if suffix in _ARRAYS and kind in ("images", "digits"):
        return _pictures_of_arrays
    if suffix in _ARRAYS and kind in ("arrays", "legacy"):
        return _arrays
    if kind == "arc" and suffix == ".json":
        return _tasks
    if suffix in IMAGE_SUFFIXES and kind != "images":
        raise _refused(path, "a picture", kind)
    if kind == "images" and suffix not in _ARRAYS:
        return _picture
    if kind == "text" and suffix not in (*_ARRAYS, ".json", ".h5", ".hdf5", ".pt"):
        return lambda path, wanted, log: of_lines(str(path), text_lines(path), wanted, log)
    raise _refused(path, f"a {suffix} file" if suffix else "a file without a suffix", kind)


def _refused(path: Path, what: str, kind: str) -> DataError:
    return DataError(f"{path}: is {what}, and the model was trained on {kind}", hint=f"it takes {_TAKES[kind]}")


def _picture(path: Path, wanted: Wanted, log: Log) -> Iterator[Raw]:
    yield Raw(path, str(path), _name_of(path))


def _folder(path: Path, wanted: Wanted, log: Log) -> Iterator[Raw]:
    """Its pictures, labelled by their class folder where the model knows a class of that name."""
    for file, label in picture_files(path, log):
        yield Raw(file, str(file), _name_of(file), label if label is not None and wanted.is_class(label) else None)


def _texts(path: Path, wanted: Wanted, log: Log) -> Iterator[Raw]:
    """Its texts, one in each file, with the class folders that the model knows as labels."""
    for file, label in text_files(path, log):
        known = label if label is not None and wanted.is_class(label) else None
        yield Raw(whole_text(file), str(file), _name_of(file), known)


def _name_of(path: Path) -> str:
    """The path as text that can be written, whatever bytes it holds."""
    return str(path).encode(errors="replace").decode()


def _tasks(path: Path, wanted: Wanted, log: Log) -> Iterator[Raw]:
    if path.is_file() and not looks_like_arc(document := load_json(path)):  # pairs of grids alone
        yield from arc_samples(document, str(path), wanted)
        return
    tasks = list(raw_tasks(path))
    if not tasks:
        raise DataError(f"{path}: holds no .json of a task")
    for task in tasks:
        yield from task_samples(task, wanted)


def _rows(path: Path, wanted: Wanted, log: Log) -> Iterator[Raw]:
    """As the builder reads them."""
    table = open_delimited(path)
    for number, values in table.rows():
        yield of_value(dict(zip(table.columns, values, strict=True)), f"{path}:{number}", wanted)


def _pictures_of_arrays(path: Path, wanted: Wanted, log: Log) -> Iterator[Raw]:
    """[N, H, W] or [N, H, W, C]; in an .npy also one picture [H, W]. Labels [N] in an .npz."""
    arrays = open_arrays(path)
    there = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    images = next((arrays[name] for name in (*IMAGE_ARRAYS, "array") if name in arrays), None)
    if images is None or (len(images.shape) == 2 and len(arrays) > 1) or len(images.shape) not in (2, 3, 4):
        raise DataError(f"{path}: has no array images (or x) of [N, H, W] or [N, H, W, C]; there are: {there}")
    if len(images.shape) == 2:
        yield Raw(np.stack(list(images.rows())), str(path), str(path))
        return
    labels = _labels(path, arrays, images, wanted)
    for number, image in enumerate(images.rows()):
        where = f"{path}, row {number}"
        yield Raw(image, where, where, next(labels))


def _labels(path: Path, arrays: dict[str, ArrayFile], images: ArrayFile, wanted: Wanted) -> Iterator[str | None]:
    name = wanted.label or next((name for name in LABEL_ARRAYS if name in arrays), None)
    if name is None:
        while True:
            yield None
    if name not in arrays or arrays[name].shape != images.shape[:1]:
        raise DataError(f"{path}: has no array {name!r} with a label for each of {images.shape[0]} pictures")
    for number, value in enumerate(arrays[name].rows()):
        yield known_class(class_name(value), f"{path}, row {number}", wanted)


def _arrays(path: Path, wanted: Wanted, log: Log) -> Iterator[Raw]:
    for number, record in enumerate(array_reader(str(path), wanted.label, log).records(digests=False)):
        where = f"{path}, row {number}"
        yield Raw(record.content, where, where, known_class(record.label, where, wanted))
