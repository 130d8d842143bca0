"""Which puzzle each identifier stands for. A folder numbers its own puzzles; a run numbers those of all of its folders,
and records which they are, so that no other folder's puzzles are answered under the embeddings of its own.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from trm_core.data.puzzles.layout import BLANK, IDENTIFIERS
from trm_core.data.puzzles.reader import PuzzleData
from trm_core.errors import DataError

_NOBODY = 0  # the mark of a number that no puzzle has, or none with a name


def numbered_together(folders: Sequence[PuzzleData]) -> list[PuzzleData]:
    """Training folders, each puzzle with a number of its own: a folder whose names contradict the numbers that are
    given so far has the next ones. Folders without names keep theirs, as in the public code.
    """
    ends: dict[int, int] = {}  # of ranges by their beginnings, in order
    given = np.zeros(0, np.uint32)
    found = []
    for folder in folders:
        marks, last = _marks(folder.names or []), max(ends, default=0)
        shift = next(
            (
                begin
                for begin, end in (ends or {0: 0}).items()
                if (begin == last or begin + folder.num_puzzles <= end) and _agree(marks, given[begin:])
            ),
            len(given),
        )
        ends[shift] = max(ends.get(shift, 0), shift + folder.num_puzzles)
        given = _laid(given, marks, shift, ends[max(ends)])
        found.append(folder.numbered(shift))
    return found


def identifiers_record(folders: Sequence[PuzzleData]) -> dict[str, Any] | None:
    """Of training folders that are numbered together, for JSON: a mark of each identifier's name, and the numbers at
    which folders begin. None where no folder names any.
    """
    if all(folder.names is None for folder in folders):
        return None
    marks = np.zeros(0, np.uint32)
    for folder in folders:
        own = _marks(folder.names or [])
        marks = _laid(marks, own, folder.shift, folder.shift + len(own))
    # ARC has hundreds of thousands of them.
    names = base64.b64encode(marks.astype("<u4").tobytes()).decode()
    return {"names": names, "begin": sorted({folder.shift for folder in folders})}


def shift_in(data: PuzzleData, trained: int, record: Any) -> int | None:
    """What to add to the identifiers of `data` to have those under which a model with embeddings of `trained` puzzles,
    those of `record`, knows them; None where it does not.
    """
    marks, (known, begin) = _marks(data.names or []), _read(record)
    fitting = (shift for shift in begin if shift + data.num_puzzles <= trained and _agree(marks, known[shift:]))
    return next(fitting, None)


def numbered_as_trained(data: PuzzleData, trained: int, record: Any) -> PuzzleData:
    """A folder by the numbers of `shift_in`. Raises DataError where the model does not know its puzzles."""
    if (shift := shift_in(data, trained, record)) is not None:
        return data.numbered(shift)
    if data.num_puzzles > trained:
        why = f"{data.path} has {data.num_puzzles} puzzle identifiers, the training puzzles {trained}"
    else:
        names = data.names or []
        number = _contradictions(_marks(names), _read(record)[0])[0]
        why = f"{data.path / IDENTIFIERS}: identifier {number} is {names[number]!r:.80}, another puzzle in training"
    raise DataError(why, hint="build training and test puzzles together, or train with arch.puzzle_emb_ndim=0")


def _marks(names: list[str]) -> np.ndarray:
    marks = [_NOBODY if name == BLANK else max(1, zlib.crc32(name.encode(errors="surrogatepass"))) for name in names]
    return np.array(marks, np.uint32)


def _contradictions(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Numbers that both give to somebody, and not to the same."""
    both = min(len(some), len(others))
    a, b = some[:both], others[:both]
    return np.flatnonzero((a != b) & (a != _NOBODY) & (b != _NOBODY))


def _agree(some: np.ndarray, others: np.ndarray) -> bool:
    return len(_contradictions(some, others)) == 0


def _laid(given: np.ndarray, marks: np.ndarray, shift: int, length: int) -> np.ndarray:
    """`given`, at least so long, with these marks where they belong."""
    found = np.zeros(max(len(given), length), np.uint32)
    found[: len(given)] = given
    place = found[shift : shift + len(marks)]
    place[:] = np.where(place == _NOBODY, marks, place)
    return found


def _read(record: Any) -> tuple[np.ndarray, list[int]]:
    """(marks, beginnings), 0 the first; no marks where a run was recorded without, or says what makes no sense."""
    names, begin = (record.get("names"), record.get("begin")) if isinstance(record, dict) else (None, None)
    try:
        data = base64.b64decode(names, validate=True) if isinstance(names, str) else b""
    except (binascii.Error, ValueError):
        data = b""
    later = [place for place in begin if isinstance(place, int) and place > 0] if isinstance(begin, list) else []
    return np.frombuffer(data[: len(data) // 4 * 4], "<u4"), [0, *later]
