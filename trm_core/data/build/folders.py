"""The files in a folder of samples, and the class of each, without those that programs hide there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from trm_core.data.build.records import Log
from trm_core.errors import DataError


def visible(folder: Path, pattern: str) -> list[Path]:
    """Sorted paths inside a folder that match, except hidden ones: copies that Jupyter keeps (.ipynb_checkpoints), and
    what macOS leaves beside files (._1.png, .DS_Store) and packs into archives (__MACOSX).
    """
    found = (path for path in folder.glob(pattern) if not any(map(_hidden, path.relative_to(folder).parts)))
    return sorted(found)


def class_folders(path: Path, suffixes: Collection[str]) -> list[Path]:
    """Sub-folders that hold such files at any depth, sorted; empty for a flat folder."""
    return [folder for folder in visible(path, "*") if folder.is_dir() and _holds(folder, suffixes)]


def files_by_class(path: Path, suffixes: Collection[str], what: str, log: Log) -> list[tuple[Path, str | None]]:
    """(file, its class) of all files with one of the suffixes; those that lie in no class folder have none. Raises
    `DataError` for a folder without any.

    what: the files are, such as "pictures".
    """
    found = [(file, folder.name) for folder in class_folders(path, suffixes) for file in visible(folder, "**/*")]
    beside = [(file, None) for file in visible(path, "*")]
    files: list[tuple[Path, str | None]] = []
    ignored: Counter[str] = Counter()
    for file, label in (*found, *beside):
        if file.is_file() and file.suffix.lower() in suffixes:
            files.append((file, label))
        elif file.is_file():
            ignored[file.suffix.lower() or "without a suffix"] += 1
    if not files:
        raise DataError(f"{path}: holds no {what}", hint="known suffixes: " + ", ".join(sorted(suffixes)))
    if ignored:
        kinds = ", ".join(suffix for suffix, _ in ignored.most_common(5))
        log(f"{path}: {ignored.total()} files were left out, as they are not {what} that trm knows ({kinds})")
    return files


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _holds(folder: Path, suffixes: Collection[str]) -> bool:
    return any(file.suffix.lower() in suffixes for file in visible(folder, "**/*"))
