"""What kind of source a path is, and the reason; in doubt an error says which --kind to give."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

from trm_core.config.schema import BuildConfig
from trm_core.data.build.arc import combined_files, load_json, looks_like_arc
from trm_core.data.build.array_files import open_arrays
from trm_core.data.build.delimited import is_number, open_delimited
from trm_core.data.build.folders import class_folders, visible
from trm_core.data.build.images import IMAGE_ARRAYS, IMAGE_SUFFIXES
from trm_core.data.build.records import called
from trm_core.data.build.tables import is_missing
from trm_core.data.build.text import TEXT_NAMES, TEXT_SUFFIXES, labelled_lines
from trm_core.data.fields import FORMAT
from trm_core.errors import DataError

_ROWS = (".csv", ".tsv", ".jsonl", ".ndjson")
_ARRAYS = (".npy", ".npz", ".h5", ".hdf5", ".hdf")
_LEGACY = (".pt", ".pth")
_SPLIT_FOLDERS = frozenset({"train", "test", "val", "valid", "validation"})
_PROSE_WORDS = 4.0
_UNPACK = "unpack it, and give what was in it"
_SAVE_AS_CSV = "save it as .csv: one table with a header, UTF-8"
_CONVERT = dict.fromkeys((".gz", ".zip", ".bz2", ".xz", ".zst", ".tar", ".tgz", ".7z"), _UNPACK) | dict.fromkeys(
    (".xlsx", ".xls", ".ods", ".parquet", ".feather", ".arrow", ".dta", ".sav", ".rds", ".pkl"), _SAVE_AS_CSV
)
_PEEK_ROWS = 100


def detect_kind(source: str, config: BuildConfig) -> tuple[str, str]:
    """(kind, reason) of a source. Raises `DataError` if it is missing, empty, of no known kind or ambiguous."""
    path = Path(source)
    if source == "digits" and not path.exists():
        return "digits", "the embedded handwritten digits"
    if not path.exists():
        raise DataError(
            f"{source}: no such file or folder", hint="check the path; 'digits' is the data set of scikit-learn"
        )
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{source}: is empty")
    _refuse_capsule_file(path)
    if config.kind != "auto":
        if config.kind == "digits":
            raise DataError(
                f"{source}: is a file or folder; the kind digits has no file", hint="name the source digits"
            )
        return config.kind, "as told"
    if path.is_dir():
        return _folder(path)
    suffix = path.suffix.lower()
    if suffix == ".txt":
        if labelled_lines(path) is not None:
            return "text", "lines of label, tab, text"
        return "text", "a plain text file: its paragraphs"
    if suffix in _ROWS:
        return _rows(path, config)
    if suffix == ".json":
        if looks_like_arc(load_json(path)):
            return "arc", "JSON with train and test pairs of grids"
        raise DataError(
            f"{path}: is JSON, but not of ARC tasks",
            hint="turn records into .jsonl, one object a line, for example: jq -c .[] FILE",
        )
    if suffix in _ARRAYS:
        return _arrays(path)
    if suffix in _LEGACY:
        return "legacy", "a PyTorch file: the older capsule format"
    if suffix in IMAGE_SUFFIXES:
        raise DataError(f"{path}: is a single picture", hint="give the folder, with one sub-folder per class")
    raise DataError(
        f"{path}: its kind cannot be told from {suffix or 'a name without a suffix'!r}",
        hint=_CONVERT.get(suffix)
        or "known: folders of pictures, .npz .npy .h5 .csv .tsv .jsonl .txt .json .pt; or rename it and give --kind",
    )


def _folder(path: Path) -> tuple[str, str]:
    if folders := class_folders(path, IMAGE_SUFFIXES):
        _refuse_splits(path, folders)
        return "images", f"a folder with {len(folders)} folders of pictures, one per class"
    if any(file.suffix.lower() in IMAGE_SUFFIXES for file in visible(path, "*")):
        return "images", "a folder of pictures without classes"
    tasks = visible(path, "*.json")
    if tasks and looks_like_arc(load_json(tasks[0])):
        combined = len(combined_files(path))
        what = f"{combined} combined files of" if combined else f"{len(tasks)} JSON files with"
        return "arc", f"a folder of {what} ARC tasks"
    if folders := class_folders(path, TEXT_SUFFIXES):
        _refuse_splits(path, folders)
        return "text", f"a folder with {len(folders)} folders of texts, one per class"
    there = Counter(file.suffix.lower() for file in visible(path, "**/*") if file.is_file())
    if sum(there[suffix] for suffix in TEXT_SUFFIXES) > there.total() / 2:
        return "text", "a folder of texts without classes, one in each file"
    if there.keys() & {".md", ".html"}:
        hint = "put the texts into one .csv or .jsonl with the columns text and label, or into .txt files"
    elif there:
        hint = (
            f"there are {', '.join(name or 'no suffix' for name, _ in there.most_common(5))}; name a file inside it, "
        )
        hint += f"or bring pictures to one of {', '.join(sorted(IMAGE_SUFFIXES))}"
    else:
        hint = "it is empty"
    raise DataError(f"{path}: holds neither pictures nor texts nor ARC tasks", hint=hint)


def _refuse_splits(path: Path, folders: list[Path]) -> None:
    if {folder.name.lower() for folder in folders} <= _SPLIT_FOLDERS:
        raise DataError(
            f"{path}: its folders are splits ({', '.join(f.name for f in folders)}), not classes",
            hint=f"give one of them, for example {folders[0]}; the builder splits by itself",
        )


def _rows(path: Path, config: BuildConfig) -> tuple[str, str]:
    """Text or table, judged by the columns that were named and by their contents."""
    table = open_delimited(path)
    if table.form == "labelled-lines":
        return "text", "two columns without a header: label, tab, text"
    if config.text is not None:
        table.of_all_lines().column(config.text)
        return "text", f"text column {config.text!r}, as named"
    if named := called(table.columns, TEXT_NAMES):
        if len(named) > 1:
            raise DataError(f"{path}: which column is the text: {' or '.join(named)}?", hint=f"give --text {named[0]}")
        return "text", f"it has a column {named[0]!r}"
    rows = [values for _, values in islice(table.rows(), _PEEK_ROWS)]
    if not rows:
        raise DataError(f"{path}: has a header and no rows")
    numeric = 0
    for index, name in enumerate(table.columns):
        cells = [row[index].strip() for row in rows if not is_missing(row[index].strip())]
        if table.form == "jsonl" and all(cell[:1] in "{[" for cell in cells):
            continue  # the reader judges lists and objects
        if cells and all(is_number(cell) for cell in cells):
            numeric += 1
        elif cells and sum(len(cell.split()) for cell in cells) / len(cells) >= _PROSE_WORDS:
            raise DataError(
                f"{path}: column {name!r} looks like prose: is this text or a table?",
                hint=f"give --text {name} to read it as text, or --kind table",
            )
    return "table", f"{len(table.columns)} columns with a header, {numeric} of them numbers"


def _arrays(path: Path) -> tuple[str, str]:
    arrays = open_arrays(path)
    shown = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    if {"sketches", "children"} & set(arrays):
        return "arrays", f"it holds {shown}"
    images = [arrays[name] for name in IMAGE_ARRAYS if name in arrays] if path.suffix.lower() == ".npz" else []
    if not images:
        return "arrays", f"it holds {shown}"
    shape = images[0].shape
    if len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3, 4)):
        return "images", f"its array {images[0].name} {list(shape)} has the shape of pictures"
    if len(shape) == 2:
        raise DataError(
            f"{path}: {images[0].name} {list(shape)} holds a row of numbers for each sample",
            hint="save it as .csv with a header: a table, whose columns are bought one by one; or reshape embeddings "
            "to [N, k, m, D] and call them children",
        )
    raise DataError(
        f"{path}: it is not clear whether {images[0].name} {list(shape)} holds pictures or embeddings",
        hint="give --kind images ([N, H, W] or [N, H, W, C]) or --kind arrays ([N, k, m, D])",
    )


def _refuse_capsule_file(path: Path) -> None:
    if path.suffix.lower() not in _ARRAYS or not path.is_file():
        return
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            ours = "format" in file.attrs and file.attrs["format"] in (FORMAT, FORMAT.encode())
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        return  # not HDF5, or damaged: the reader of the kind says what is wrong
    if ours:
        raise DataError(
            f"{path}: is already a capsule file", hint="train on it with data.path, or look at it with inspect-dataset"
        )
