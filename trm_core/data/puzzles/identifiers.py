"""Which puzzle each identifier stands for. A run records it, so that no other folder's puzzles are answered under the
embeddings of its own.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from trm_core.data.puzzles.layout import BLANK, IDENTIFIERS
from trm_core.data.puzzles.reader import PuzzleData

HINT = "build training and test puzzles together, or train with arch.puzzle_emb_ndim=0"
_NOBODY = 0  # the mark of a number that no puzzle has, or none with a name


def identifiers_record(folders: Sequence[PuzzleData]) -> str | None:
    """Of training folders that can be merged, for JSON: a mark of each identifier's name. None where no folder names
    any.
    """
    if all(folder.names is None for folder in folders):
        return None
    found = [_marks(folder.names or []) for folder in folders]
    marks = [max(each) for each in zip_longest(*found, fillvalue=_NOBODY)]
    # ARC has hundreds of thousands of them.
    return base64.b64encode(np.asarray(marks, "<u4").tobytes()).decode()


def unknown_puzzles(data: PuzzleData, trained: int, record: Any) -> str | None:
    """Why a model with embeddings of `trained` puzzles, those of `record`, has none of the puzzles of `data`; None
    where nothing says so.
    """
    if data.num_puzzles > trained:
        return f"{data.path} has {data.num_puzzles} puzzle identifiers, the training puzzles {trained}"
    names = data.names or []
    for number, (here, there) in enumerate(zip(_marks(names), _read(record), strict=False)):
        if here != there and _NOBODY not in (here, there):
            return (
                f"{data.path / IDENTIFIERS}: identifier {number} is {names[number]!r:.80}, another puzzle in training"
            )
    return None


def _marks(names: list[str]) -> list[int]:
    return [_NOBODY if name == BLANK else max(1, zlib.crc32(name.encode(errors="surrogatepass"))) for name in names]


def _read(record: Any) -> list[int]:
    """Nothing where a run was recorded without, or says what makes no sense."""
    try:
        data = base64.b64decode(record, validate=True) if isinstance(record, str) else b""
    except (binascii.Error, ValueError):
        return []
    return np.frombuffer(data[: len(data) // 4 * 4], "<u4").tolist()
