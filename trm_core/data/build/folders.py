"""The files in a folder of samples, without those that programs hide there."""

from __future__ import annotations

from pathlib import Path


def visible(folder: Path, pattern: str) -> list[Path]:
    """Sorted paths inside a folder that match, except hidden ones: copies that Jupyter keeps (.ipynb_checkpoints), and
    what macOS leaves beside files (._1.png, .DS_Store) and packs into archives (__MACOSX).
    """
    found = (path for path in folder.glob(pattern) if not any(map(_hidden, path.relative_to(folder).parts)))
    return sorted(found)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
