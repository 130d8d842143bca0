"""Which puzzle each identifier stands for. A folder numbers its own puzzles; a run numbers those of all its folders
together and records which they are, so that another folder's puzzles are never answered with the wrong embeddings.
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

_NOBODY = 0  # the mark of a number that belongs to no puzzle, or to one without a name


def numbered_together(folders: Sequence[PuzzleData]) -> list[PuzzleData]:
    """Training folders in which every puzzle has a number of its own: a folder whose names contradict the numbers given
    so far gets the next free ones. Folders without names keep their numbers, as in the public code.
    """
    marks = [_marks(folder.names or []) for folder in folders]
    nameless = [folder.num_puzzles for folder, own in zip(folders, marks, strict=True) if not own.any()]
    given, begin, found = np.zeros(max(nameless, default=0), np.uint32), [0], []
    for folder, own in zip(folders, marks, strict=True):
        shift = _place(own, folder.num_puzzles, given, begin)
        if shift is None:
            shift = len(given)
            begin.append(shift)
        given = _laid(given, own, shift, shift + folder.num_puzzles)
        found.append(folder.numbered(shift))
    return found


def identifiers_record(folders: Sequence[PuzzleData]) -> dict[str, Any] | None:
    """The JSON record of training folders that are numbered together: a mark (CRC-32) of each identifier's name, and
    the numbers at which folders begin. None where no folder has names.
    """
    if all(folder.names is None for folder in folders):
        return None
    marks = np.zeros(0, np.uint32)
    for folder in folders:
        own = _marks(folder.names or [])
        marks = _laid(marks, own, folder.shift, folder.shift + len(own))
    # Base64, because ARC has hundreds of thousands of them.
    names = base64.b64encode(marks.astype("<u4").tobytes()).decode()
    return {"names": names, "begin": sorted({folder.shift for folder in folders})}


def shift_in(data: PuzzleData, trained: int, record: Any) -> int | None:
    """What to add to the identifiers of `data` to get those under which a model with embeddings of `trained` puzzles,
    recorded in `record`, knows the same puzzles; None where it does not know them.
    """
    return _place(_marks(data.names or []), data.num_puzzles, *_read(record, trained), trained)


def number_of(name: str, marks: np.ndarray) -> int | None:
    """The number under which a model knows the puzzle of this name, by the marks that `recorded_marks` gave; None where
    it does not.
    """
    (own,) = _marks([name])
    found = np.flatnonzero(marks == own)
    return int(found[0]) if own != _NOBODY and len(found) else None


def recorded_marks(trained: int, record: Any) -> np.ndarray:
    """uint32: the mark of the name of each of at most `trained` identifiers; empty where the run recorded none."""
    return _read(record, trained)[0][:trained]


def same_puzzles(folders: Sequence[PuzzleData], trained: int, record: Any) -> tuple[np.ndarray, np.ndarray]:
    """For training folders that are numbered together: (their numbers, the numbers under which a model with embeddings
    of `trained` puzzles, recorded in `record`, knows the same puzzles). Of each folder that is found in the record,
    these are the puzzles whose names agree.
    """
    known, begin = _read(record, trained)
    here, there = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for folder in folders:
        own = _marks(folder.names or [])
        if (first := _place(own, folder.num_puzzles, known, begin, trained)) is not None:
            theirs = known[first : first + len(own)]
            same = np.flatnonzero((own[: len(theirs)] == theirs) & (theirs != _NOBODY))
            here.append(same + folder.shift)
            there.append(same + first)
    return np.concatenate(here), np.concatenate(there)


def numbered_as_trained(data: PuzzleData, trained: int, record: Any) -> PuzzleData:
    """The folder, renumbered by `shift_in`. Raises DataError where the model does not know its puzzles."""
    if (shift := shift_in(data, trained, record)) is not None:
        return data.numbered(shift)
    names, (known, begin) = data.names or [], _read(record, trained)
    end = [*begin[1:], trained][0]
    if len(wrong := _contradictions(_marks(names), known[:end])):
        name = f"identifier {wrong[0]} is {names[wrong[0]]!r:.80}"
        why = f"{data.path / IDENTIFIERS}: {name}, but another puzzle had it in training"
    else:
        why = f"{data.path} has {data.num_puzzles} puzzle identifiers, but the training puzzles have {end}"
    raise DataError(why, hint="build training and test puzzles together, or train with arch.puzzle_emb_ndim=0")


def _place(
    marks: np.ndarray, size: int, known: np.ndarray, begin: Sequence[int], total: int | None = None
) -> int | None:
    """The first number of the first range with room for `size` puzzles whose marks contradict none of those in `known`.
    Ranges begin at the numbers of `begin`; the last one ends at `total`, or is open where that is None.
    """
    for first, end in zip(begin, [*begin[1:], total], strict=True):
        if (end is None or first + size <= end) and not len(_contradictions(marks, known[first:end])):
            return first
    return None


def checksum_of(name: str) -> int:
    """The CRC-32 of a name. It is the name's mark, but for 0, which marks nobody."""
    return zlib.crc32(name.encode(errors="surrogatepass"))


def _marks(names: list[str]) -> np.ndarray:
    return np.array([_NOBODY if name == BLANK else max(1, checksum_of(name)) for name in names], np.uint32)


def _contradictions(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Numbers that both give to a named puzzle, but not to the same one."""
    both = min(len(some), len(others))
    a, b = some[:both], others[:both]
    return np.flatnonzero((a != b) & (a != _NOBODY) & (b != _NOBODY))


def _laid(given: np.ndarray, marks: np.ndarray, shift: int, length: int) -> np.ndarray:
    """A copy of `given`, at least `length` long, with `marks` entered from `shift` on wherever no mark stood."""
    found = np.zeros(max(len(given), length), np.uint32)
    found[: len(given)] = given
    place = found[shift : shift + len(marks)]
    place[:] = np.where(place == _NOBODY, marks, place)
    return found


def _read(record: Any, trained: int) -> tuple[np.ndarray, list[int]]:
    """(marks, first number of each folder's range, beginning with 0) of a record; no marks where the run recorded none
    or the record makes no sense.
    """
    names, begin = (record.get("names"), record.get("begin")) if isinstance(record, dict) else (None, None)
    try:
        data = base64.b64decode(names, validate=True) if isinstance(names, str) else b""
    except (binascii.Error, ValueError):
        data = b""
    told = begin if isinstance(begin, list) else []
    later = {place for place in told if isinstance(place, int) and 0 < place < trained}
    return np.frombuffer(data[: len(data) // 4 * 4], "<u4"), [0, *sorted(later)]
