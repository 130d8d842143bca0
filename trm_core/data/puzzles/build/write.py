"""Write a puzzle folder: complete under its final name, or not there at all.

Examples come in blocks, so that a split need not fit into memory. Everything is written into a folder beside the
output, fsynced, and renamed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import write_array_header_1_0

from trm_core.data.build.work import disk_errors, locked
from trm_core.data.puzzles.build.report import SplitCounts
from trm_core.data.puzzles.layout import (
    DATASET,
    EXAMPLE_FIELDS,
    IDENTIFIERS,
    MANIFEST,
    SET,
    Manifest,
    Metadata,
    array_path,
)
from trm_core.data.store.partial import fsync_folder
from trm_core.errors import UsageError


@dataclass(frozen=True)
class SplitData:
    """One split with P puzzles in G groups.

    `blocks` yields pairs (inputs, labels), each [n, S], N rows in all; it is read once, in order.
    """

    metadata: Metadata
    blocks: Iterable[tuple[np.ndarray, np.ndarray]]
    puzzle_identifiers: np.ndarray  # [P]
    puzzle_indices: np.ndarray  # [P + 1], the last one N
    group_indices: np.ndarray  # [G + 1], the last one P

    @property
    def counts(self) -> SplitCounts:
        return SplitCounts(len(self.group_indices) - 1, len(self.puzzle_identifiers), int(self.puzzle_indices[-1]))


def write_folder(
    out: Path,
    splits: Mapping[str, SplitData],
    identifiers: Sequence[str],
    manifest: Manifest,
    *,
    files: Mapping[str, Any] | None = None,
) -> dict[str, SplitCounts]:
    """Write the folder `out`; `files` are further JSON files at its top, by name.

    Raises UsageError if `out` exists and is not empty: `replacing` is for that.
    """
    refuse_existing(out)
    temporary = _own_name(out, "tmp")
    with disk_errors(out):
        _remove_leftovers(out, "tmp")
        temporary.mkdir(parents=True)
        try:
            for name, data in splits.items():
                _write_split(temporary, name, data)
            _write_json(temporary / IDENTIFIERS, list(identifiers))
            for file_name, content in (files or {}).items():
                _write_json(temporary / file_name, content)
            # The manifest comes last: a folder that has it is complete.
            _write_json(temporary / MANIFEST, manifest.model_dump(mode="json"))
            for folder in (*(temporary / name for name in splits), temporary):
                fsync_folder(folder)
            os.replace(temporary, out)  # replaces an empty folder too
            fsync_folder(out.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return {name: data.counts for name, data in splits.items()}


@contextmanager
def replacing(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """The path at which to build `out`; two builds of one output are kept apart.

    With `overwrite` and something at `out`, that is a name beside it, and the finished folder takes `out`'s place at
    the end. A folder that holds anything but puzzles is never replaced.
    """
    if not overwrite:
        refuse_existing(out)
    elif _occupied(out) and not (out / IDENTIFIERS).is_file():
        raise UsageError(f"{out}: holds something other than puzzles; it is left alone", hint="choose another --out")
    with locked(_beside(out, "lock"), lambda message: None, wait=False):
        if not _occupied(out):
            yield out
            return
        _remove_leftovers(out, "tmp|new|old")
        new, old = _own_name(out, "new"), _own_name(out, "old")
        try:
            yield new
            with disk_errors(out):
                os.replace(out, old)
                os.replace(new, out)
                fsync_folder(out.parent)
        finally:
            if old.exists() and not out.exists():
                os.replace(old, out)
            for leftover in (new, old):
                shutil.rmtree(leftover, ignore_errors=True)


def refuse_existing(out: Path) -> None:
    """Raise UsageError if there is something at `out`; an empty folder does not count."""
    if _occupied(out):
        raise UsageError(f"{out}: exists already", hint="choose another --out, or replace it with --overwrite")


def _occupied(out: Path) -> bool:
    if out.is_dir():
        return any(out.iterdir())
    return out.exists() or out.is_symlink()


def _beside(out: Path, what: str) -> Path:
    out = out.resolve()
    return out.with_name(f".{out.name}.{what}")


def _own_name(out: Path, kind: str) -> Path:
    """A hidden name beside `out` that no other build uses. Where locks do not reach other machines, two builds of one
    output are not kept apart: then one of them wins, and never a mixture of both.
    """
    return _beside(out, f"{kind}.{uuid.uuid4().hex[:12]}")


def _remove_leftovers(out: Path, kinds: str) -> None:
    """Remove what killed builds left under names of these kinds, and what they wrote on the way there."""
    token = "[0-9a-f]{12}"
    left = re.compile(rf"\.+{re.escape(out.resolve().name)}\.({kinds})\.{token}(\.tmp\.{token})?")
    for path in out.resolve().parent.glob(".*"):
        if left.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _write_split(folder: Path, name: str, data: SplitData) -> None:
    (folder / name).mkdir()
    count, meta = data.counts.examples, data.metadata
    # Small integers take a quarter of the disk space. Appended rather than mapped, because a full disk kills a process
    # that writes to a map.
    dtype = np.dtype(np.uint8 if max(meta.vocab_size - 1, meta.ignore_label_id or 0) < 256 else np.int32)
    header = {"descr": dtype.str, "fortran_order": False, "shape": (count, meta.seq_len)}
    start = 0
    with ExitStack() as stack:
        paths = [array_path(folder, name, SET, field) for field in EXAMPLE_FIELDS]
        files = [stack.enter_context(open(path, "wb")) for path in paths]
        for file in files:
            write_array_header_1_0(file, header)
        for block in data.blocks:
            for file, rows in zip(files, block, strict=True):
                if rows.shape != (len(block[0]), meta.seq_len):
                    raise ValueError(f"{name}: a block of shape {rows.shape}, sequences of {meta.seq_len}")
                file.write(rows.astype(dtype).tobytes())
            start += len(block[0])
    if start != count:
        raise ValueError(f"{name}: {start} examples were given, {count} announced")
    for field in ("puzzle_identifiers", "puzzle_indices", "group_indices"):
        np.save(array_path(folder, name, SET, field), getattr(data, field).astype(np.int32))
    _write_json(folder / name / DATASET, meta.model_dump(mode="json"))
    for path in (folder / name).iterdir():
        _sync(path)


def _write_json(path: Path, content: Any) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=None if isinstance(content, list) else 2)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
