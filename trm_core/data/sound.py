"""Checks what a capsule file promises about its numbers where they are used. Finiteness is looked into only once an
outcome is not finite, so that healthy data pay nothing; whether checksums belong to their children is checked on a
sample of rows. `CapsuleFile.verify` checks everything.
"""

from __future__ import annotations

from collections.abc import Iterable

from trm_core.data.batch import CapsuleBatch
from trm_core.data.dataset import Dataset, batches_of
from trm_core.data.fields import FIELDS
from trm_core.data.store import CapsuleFile
from trm_core.data.store.verify import strange_checksums
from trm_core.data.stream import spread
from trm_core.errors import DataError

CHECKSUM_ROWS = 64  # rows of a split that are verified before it is used
_PIECE_BYTES = 8 << 20
_EMBEDDINGS = tuple(name for name, field in FIELDS.items() if field.is_embedding)


def require_checksums(file: Dataset, split: str) -> None:
    """Raise DataError if, in rows spread over a split, checksums do not belong to their children. Puzzles have none."""
    if not isinstance(file, CapsuleFile):
        return
    rows = spread(file.rows[split], CHECKSUM_ROWS)
    strange = strange_checksums(file, split, rows)
    if not len(strange):
        return
    for batch in batches_of(file, split, CHECKSUM_ROWS, CHECKSUM_ROWS):
        require_finite(file, split, batch)
    raise DataError(
        f"{file.path}: {split}/checksums: row {strange[0]} does not belong to its children ({len(strange)} of "
        f"{len(rows)} rows that were looked at do not)",
        hint=f"build the file again from its source; trm inspect-dataset {file.path} looks at all rows",
    )


def require_finite(file: Dataset, split: str, batch: CapsuleBatch) -> None:
    """Raise DataError for a row of a batch of a split whose embeddings are not finite. Puzzles have none."""
    if not isinstance(file, CapsuleFile):
        return
    for name in _EMBEDDINGS:
        values = getattr(batch, name)
        if values is None:
            continue
        bad = ~values.isfinite().flatten(1).all(1)
        if bool(bad.any()):
            raise DataError(
                f"{file.path}: {split}/{name}: row {int(batch.rows[bad][0])} holds NaN or infinity",
                hint=f"build the file again from data without them; trm inspect-dataset {file.path} says in how many "
                "rows they are",
            )


def require_finite_split(files: Iterable[Dataset], split: str) -> None:
    """Raise DataError for the first row of a split of several files whose embeddings are not finite. Reads all rows."""
    for file in files:
        if isinstance(file, CapsuleFile):
            rows = max(1, _PIECE_BYTES // file.layout.bytes_per_row)
            for batch in batches_of(file, split, rows):
                require_finite(file, split, batch)
