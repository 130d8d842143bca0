"""Read a whole capsule file once and report what is wrong with its contents.

`inspect-dataset` shows the list. The structure was checked when the file was opened; this is about the values: NaN and
infinity, labels, parents, checksums against the children, and every byte against the content hash of the manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from trm_core.data.checksum import checksums
from trm_core.data.fields import ENCODERS, FIELDS, IGNORE_LABEL, PRICES
from trm_core.data.store.encoder_arrays import HASHES, check_hashes
from trm_core.data.store.layout import content_hash, dataset_hash

if TYPE_CHECKING:
    from trm_core.data.store.reader import CapsuleFile

ProblemKind = Literal[
    "non-finite",
    "label-range",
    "parent-range",
    "checksum-mismatch",
    "checksum-unverifiable",
    "hash-mismatch",
    "no-hash",
]

# (relative, absolute) differences that rounding can explain. Half precision moves each child by at most 2^-11 of
# itself, or 2^-25 below its normal range; several times that is more than any projection adds up to. A wrong seed is
# off by hundreds of times more.
_TOLERANCE = {"float16": (8 * 2.0**-11, 8 * 2.0**-24), "float32": (1e-4, 1e-12)}


@dataclass(frozen=True)
class Problem:
    """One finding. `severity` "note": nothing is wrong, but something could not be checked."""

    kind: ProblemKind
    severity: Literal["error", "note"]
    dataset: str  # "train/children", or "" for the whole file
    row: int | None  # first row affected
    count: int  # rows affected
    message: str


def verify_file(file: CapsuleFile, progress: Callable[[str, int, int], None] | None = None) -> list[Problem]:
    """All problems of the file; empty if there are none.

    `progress(dataset, rows_done, rows)` is called after each piece. Raises DataError where bytes cannot be read at all.
    """
    problems: list[Problem] = []
    hashes: dict[str, str] = {}
    for split, count in file.rows.items():
        for field in file.fields:
            key = f"{split}/{field}"
            digest = hashlib.sha256()
            bad = _BadRows()
            for piece in file.slices(split, file.layout.row_bytes(field)):
                values = file.read(split, piece, [field])[field]
                digest.update(np.ascontiguousarray(values).data)
                bad.add(piece.start, _bad_values(file, field, values))
                if progress is not None:
                    progress(key, piece.stop, count)
            problems += bad.problems(key, *_describe(file, field))
            shape = (count, *file.layout.row_shape(field))
            hashes[key] = dataset_hash(file.layout.dtypes[field], shape, digest.hexdigest())
        problems += _verify_checksums(file, split, progress)
    return problems + _verify_hashes(file, hashes) + _verify_encoders(file)


class _BadRows:
    """Counts affected rows over pieces and remembers the first."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.count = 0

    def add(self, start: int, bad: np.ndarray) -> None:
        """`bad` [n] bool for the rows from `start`."""
        rows = np.flatnonzero(bad)
        self.count += len(rows)
        if len(rows) and self.first is None:
            self.first = start + int(rows[0])

    def problems(self, dataset: str, kind: ProblemKind, what: str) -> list[Problem]:
        if self.first is None:
            return []
        message = f"{dataset}: {self.count} row(s) with {what}, first row {self.first}"
        return [Problem(kind, "error", dataset, self.first, self.count, message)]


def _describe(file: CapsuleFile, field: str) -> tuple[ProblemKind, str]:
    if FIELDS[field].is_embedding:
        return "non-finite", "NaN or infinity"
    if field == "labels":
        limit = "" if file.num_classes is None else f" or above {file.num_classes - 1}"
        return "label-range", f"a label below 0 (other than {IGNORE_LABEL}){limit}"
    return "parent-range", f"a parent outside -1 to {file.num_capsules - 1}"


def _bad_values(file: CapsuleFile, field: str, values: np.ndarray) -> np.ndarray:
    if FIELDS[field].is_embedding:
        bad = ~np.isfinite(values)
    elif field == "labels":
        bad = (values < 0) & (values != IGNORE_LABEL)
        if file.num_classes is not None:
            bad |= values >= file.num_classes
    elif field == "parents":
        bad = (values < -1) | (values >= file.num_capsules)
    else:
        return np.zeros(len(values), bool)
    return bad.reshape(len(values), -1).any(1)


def _verify_checksums(file: CapsuleFile, split: str, progress: Callable[[str, int, int], None] | None) -> list[Problem]:
    if not file.has("checksums"):
        return []
    key = f"{split}/checksums"
    seed = file.manifest.get("checksum_seed")
    if seed is None or not file.has("children"):
        why = "the manifest has no checksum_seed" if file.has("children") else "the file has no children"
        message = f"{key}: cannot be verified: {why}"
        return [Problem("checksum-unverifiable", "note", key, None, 0, message)]
    bad = _BadRows()
    for piece in file.slices(split, file.layout.row_bytes("children") + file.layout.row_bytes("checksums")):
        bad.add(piece.start, _strange_checksums(file, split, piece, seed))
        if progress is not None:
            progress(f"{key} (recomputed)", piece.stop, file.rows[split])
    return bad.problems(key, "checksum-mismatch", "checksums that do not belong to their children")


def strange_checksums(file: CapsuleFile, split: str, rows: np.ndarray) -> np.ndarray:
    """Those of `rows` [n] of a split whose checksums do not belong to their children; none if that cannot be
    checked.
    """
    seed = file.manifest.get("checksum_seed")
    if seed is None or not (file.has("checksums") and file.has("children")):
        return rows[:0]
    return rows[_strange_checksums(file, split, rows, seed)]


def _strange_checksums(file: CapsuleFile, split: str, rows: slice | np.ndarray, seed: int) -> np.ndarray:
    """[n] bool: rows whose checksums do not belong to their children."""
    relative, absolute = max(_TOLERANCE[file.layout.dtypes[field]] for field in ("children", "checksums"))
    arrays = file.read(split, rows, ["children", "checksums"])
    children, stored = arrays["children"].astype(np.float32), arrays["checksums"].astype(np.float32)
    expected = checksums(children, file.checksum_dim, seed)
    rms = np.sqrt(np.square(children, dtype=np.float64).mean((2, 3)))[:, :, None]
    # Tested as "not close" rather than "too far", so that NaN counts as a mismatch.
    close = np.abs(expected - stored) <= relative * (rms + np.abs(stored)) + absolute
    return ~close.all((1, 2))


def _verify_encoders(file: CapsuleFile) -> list[Problem]:
    """The arrays of the recorded encoders, which the content hash leaves out."""
    arrays = {name: file.read_encoder_array(name) for name in file.encoder_arrays}
    wrong = check_hashes(f"{ENCODERS}/", file.manifest.get(HASHES), arrays)
    return [Problem("hash-mismatch", "error", message.partition(":")[0], None, 0, message) for message in wrong]


def _verify_hashes(file: CapsuleFile, hashes: dict[str, str]) -> list[Problem]:
    declared = file.manifest.get("dataset_hashes")
    total = file.manifest.get("content_hash")
    if not isinstance(declared, dict) or total is None:
        return [Problem("no-hash", "note", "", None, 0, "the manifest has no content hash to compare with")]
    if file.has_prices:
        digest = hashlib.sha256(np.ascontiguousarray(file.prices, "<f4").data).hexdigest()
        hashes[PRICES] = dataset_hash("float32", file.prices.shape, digest)
    problems = []
    for key in sorted(set(hashes) | set(declared)):
        if hashes.get(key) != declared.get(key):
            message = f"{key}: its bytes are not those that were written (sha256 differs)"
            problems.append(Problem("hash-mismatch", "error", key, None, 0, message))
    if not problems and content_hash(hashes) != total:
        message = "the manifest's content_hash does not fit its dataset_hashes"
        problems.append(Problem("hash-mismatch", "error", "", None, 0, message))
    return problems
