"""Rows of one stored dataset; each chunk is checked against its checksum at the first reading and every eighth one
after.

HDF5 computes the checksum of a chunk whenever it reads it, which takes longer than the rest of the read. In between,
the bytes of a chunk that was intact before are taken as they are, so a disk that goes bad is noticed a few epochs
later.
"""

from __future__ import annotations

from itertools import pairwise

import h5py
import numpy as np

RECHECK = 8
_CHECKSUM_BYTES = 4  # of fletcher32, behind the data of a chunk


class CheckedReader:
    """Reads contiguous rows. One per dataset and open file; it holds one chunk, and one byte for every chunk there
    is.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self._chunk_rows = dataset.chunks[0] if _is_plain(dataset) else 0
        if self._chunk_rows:
            row_bytes = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:], dtype=np.int64))
            self._readings = np.zeros(-(-len(dataset) // self._chunk_rows), np.uint8)
            self._chunk = np.empty(self._chunk_rows * row_bytes + _CHECKSUM_BYTES, np.uint8)

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        """Rows start .. stop-1 (at least one) into `out`. Raises OSError or RuntimeError where the file is damaged."""
        size = self._chunk_rows
        if not size:
            self._dataset.read_direct(out, np.s_[start:stop])
            return
        first, last = start // size, -(-stop // size)
        # A chunk of which only some rows are wanted is left to HDF5, which keeps it for the next reading.
        whole = np.ones(last - first, bool)
        whole[0] &= start % size == 0
        whole[-1] &= stop % size == 0
        readings = self._readings[first:last]
        trusted = whole & (readings % RECHECK != 0)
        readings += whole  # wraps at 256, a multiple of RECHECK
        bounds = [start, *((first + 1 + np.flatnonzero(np.diff(trusted))) * size).tolist(), stop]
        for low, high in pairwise(bounds):
            if trusted[low // size - first]:
                self._copy_chunks(low, out[low - start : high - start])
            else:
                self._dataset.read_direct(out, np.s_[low:high], np.s_[low - start : high - start])

    def _copy_chunks(self, start: int, out: np.ndarray) -> None:
        """The chunks of the rows from `start`, as they lie in the file, into `out`."""
        size, place = self._chunk_rows, out.reshape(-1).view(np.uint8)
        length = len(self._chunk) - _CHECKSUM_BYTES
        for number in range(len(out) // size):
            origin = (start + number * size, *(0 for _ in self._dataset.shape[1:]))
            begin = number * length
            # The checksum lands where the next chunk will be put; behind the last chunk there is no room for it.
            room = place[begin : begin + len(self._chunk)]
            fits = len(room) == len(self._chunk)
            mask, data = self._dataset.id.read_direct_chunk(origin, out=room if fits else self._chunk)
            if mask or len(data) != len(self._chunk):  # written without its checksum
                rows = slice(number * size, (number + 1) * size)
                self._dataset.read_direct(out, np.s_[origin[0] : origin[0] + size], np.s_[rows])
            elif not fits:
                place[begin : begin + length] = self._chunk[:length]


def _is_plain(dataset: h5py.Dataset) -> bool:
    """Whether the bytes of a chunk are its values and a checksum: numbers of this machine's byte order, whole rows, and
    one filter.
    """
    if dataset.chunks is None or dataset.chunks[1:] != dataset.shape[1:]:
        return False
    if dataset.dtype.kind not in "fiu" or not dataset.dtype.isnative:
        return False
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
    return filters == [h5py.h5z.FILTER_FLETCHER32]
