"""Lines as they arrive on stdin, and whether the next one is there yet, so that no answer has to wait for it."""

from __future__ import annotations

import io
import select
from collections.abc import Iterator
from typing import BinaryIO

from trm_core.data.build.delimited import decoded
from trm_core.errors import DataError

_CHUNK = 1 << 16
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8")


class ArrivingLines:
    """Iterates over (line number from 1, line without its end); blocks until a line is there."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.name = name
        self._stream = stream
        self._lines: list[bytes] = []  # arrived but not given out yet, the last one first
        self._half = b""
        self._number = 0
        self._over = False

    def __iter__(self) -> Iterator[tuple[int, str]]:
        while True:
            while not self._lines and not self._over:
                self._read()
            if not self._lines:
                return
            self._number += 1
            raw = self._lines.pop()
            if self._number == 1 and raw.startswith(_PICTURES):
                raise DataError(f"{self.name} is a picture", hint="name its file, or give the paths of pictures")
            yield self._number, decoded(raw, self.name, self._number)

    def idle(self) -> bool:
        """True if the next line has not arrived yet; always False where the system cannot tell."""
        while not self._lines and not self._over:
            try:
                waiting, _, _ = select.select([self._stream], [], [], 0)
            except (io.UnsupportedOperation, ValueError):  # not backed by a file descriptor
                return False
            if not waiting:
                return True
            self._read()
        return False

    def _read(self) -> None:
        arrived = self._stream.read1(_CHUNK)  # type: ignore[attr-defined]  # every buffered stream has it
        self._over = not arrived
        *whole, half = arrived.split(b"\n")
        if whole:
            whole[0] = self._half + whole[0]
            self._half = half
            self._lines = whole[::-1]
        else:
            self._half += half
        if self._over and self._half:
            self._lines, self._half = [self._half], b""


def whole_text(stream: BinaryIO, name: str) -> str:
    """The whole stream as text. Raises `DataError` if it is not UTF-8."""
    try:
        return stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{name}:{line}: is not UTF-8 text", hint="convert it first, for example: iconv -f latin1 -t utf-8"
        ) from None
