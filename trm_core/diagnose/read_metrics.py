"""Read a run's metrics.jsonl into series, within half a second however long the run.

A file of up to `WHOLE` bytes is read completely. From a larger one come the beginning, the end, and evenly spaced lines
in between. Even spacing would miss most evaluations; since steps rise from line to line, these are found by bisection
over byte offsets. Reading never raises, whatever the file holds: a line that is not a metrics record is skipped and
counted.
"""

from __future__ import annotations

import json
import math
import os
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from trm_core.diagnose.series import Metrics, from_lines

WHOLE = 8 * 2**20
HEAD = 2**18
TAIL = 2**19
MIDDLE = 800  # lines between head and tail, unless they would exceed `WHOLE` bytes
EVALUATIONS = 200
LONGEST = 2**18  # length of a line that is looked up by offset
_PIECE = 2**13  # holds the rest of a typical line and the next one
_FAR = 2**16  # bisection stops when this little is left, which is then read at once
_LAST_STEP = 2**62

_STEP = re.compile(rb'\s*\{\s*"step"\s*:\s*([0-9]{1,18})\s*[,}]')


def read_metrics(path: Path, eval_interval: int | None = None) -> Metrics:
    """All series of a metrics.jsonl, thinned if it is large; the `notes` then say so.

    `eval_interval`: training.eval_interval; if None, it is inferred from the evaluations among the sampled lines.
    """
    try:
        if not path.is_file():  # nor a pipe, on which reading would block
            return Metrics({}, [f"{path} is not a file" if path.exists() else f"{path} does not exist"])
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= WHOLE:
                records, skipped = _parse(file.readall().split(b"\n"))
                notes = []
            else:
                records, skipped, total = _thinned(_Lines(file, size), eval_interval)
                notes = [f"read {len(records):,} of about {total:,} lines"]
    except OSError as error:
        return Metrics({}, [f"cannot read {path}: {error.strerror}"])
    if skipped:
        notes.append(f"skipped {skipped:,} {'line that is' if skipped == 1 else 'lines that are'} no record of metrics")
    if any(later["step"] < earlier["step"] for earlier, later in pairwise(records)):
        records.sort(key=lambda record: record["step"])
        notes.append("steps go back between lines; sorted by step")
    return from_lines(records, notes)


def _parse(lines: Iterable[bytes]) -> tuple[list[dict[str, Any]], int]:
    """The records, and how many lines are not records. Empty lines are not counted."""
    records, skipped = [], 0
    for line in lines:
        record = _record(line)
        if record is not None:
            records.append(record)
        elif line.strip():
            skipped += 1
    return records, skipped


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if type(step) is int and 0 <= step <= _LAST_STEP else None


def _step_of(line: bytes) -> int | None:
    """The step of a line. One in the form that we write is not parsed completely."""
    match = _STEP.match(line)
    if match:
        return int(match[1])
    record = _record(line)
    return None if record is None else int(record["step"])


class _Lines:
    """Lines of a file by their byte offsets. Read rather than memory-mapped, because truncating a mapped file would
    kill the process.
    """

    def __init__(self, file: FileIO, size: int) -> None:
        self.file, self.size = file, size

    def read(self, offset: int, count: int) -> bytes:
        assert count >= 0, count  # a negative count would read the whole file
        self.file.seek(offset)
        return self.file.read(count)

    def at(self, offset: int) -> tuple[int, bytes] | None:
        """Offset and text of the first line that begins at `offset` or later; None if no line ends within reach."""
        begin = max(offset - 1, 0)  # a line begins at `offset` if the byte before it ends one
        count = _PIECE
        while True:
            data = self.read(begin, count)
            start = 0 if offset == 0 else data.find(b"\n") + 1
            if offset == 0 or start:
                end = data.find(b"\n", start)
                if end >= 0:
                    return begin + start, data[start:end]
                if len(data) < count:
                    return (begin + start, data[start:]) if start < len(data) else None
            if len(data) < count or count >= 2 * LONGEST:
                return None
            count *= 8

    def whole_ones(self, offset: int, count: int) -> Iterator[tuple[int, bytes]]:
        """The complete lines in `count` bytes from `offset`, which is 0 or lies within a line."""
        data = self.read(offset, count)
        start = 0 if offset == 0 else data.find(b"\n") + 1
        if offset and not start:
            return
        while (end := data.find(b"\n", start)) >= 0:
            yield offset + start, data[start:end]
            start = end + 1
        if start < len(data) and offset + len(data) >= self.size:
            yield offset + start, data[start:]


def _thinned(lines: _Lines, eval_interval: int | None) -> tuple[list[dict[str, Any]], int, int]:
    """The records kept, the number of lines that are not records, and an estimate of the number of lines."""
    chosen = dict(lines.whole_ones(0, HEAD))
    length = sum(map(len, chosen.values())) / len(chosen) + 1 if chosen else LONGEST
    lost = 0
    for offset in np.linspace(HEAD, lines.size - TAIL, max(min(MIDDLE, round(WHOLE / length)), 2)).astype(int).tolist():
        found = lines.at(offset)
        if found is None:
            lost += 1
        else:
            chosen[found[0]] = found[1]
    chosen.update(lines.whole_ones(lines.size - TAIL, TAIL))

    offsets = sorted(chosen)
    steps = sorted((step, offset) for offset in offsets if (step := _step_of(chosen[offset])) is not None)
    if eval_interval is None:
        eval_interval = math.gcd(*(step for step, offset in steps if b'"eval/' in chosen[offset][:64]))
    if steps and eval_interval:
        chosen.update(_evaluations(lines, steps, eval_interval))

    records, skipped = _parse(chosen[offset] for offset in sorted(chosen))
    length = sum(map(len, chosen.values())) / max(len(chosen), 1) + 1
    total = round(lines.size / length)
    return records, skipped + lost, round(total, 2 - math.floor(math.log10(total)))


def _evaluations(lines: _Lines, steps: list[tuple[int, int]], interval: int) -> Iterator[tuple[int, bytes]]:
    """Offset and text of the evaluations at multiples of `interval`: all of them, or `EVALUATIONS` evenly spaced ones.

    `steps`: (step, offset) of lines already known.
    """
    first, last = -(-steps[0][0] // interval), steps[-1][0] // interval
    count = min(last - first + 1, EVALUATIONS)
    for multiple in np.linspace(first, last, max(count, 0)).round().astype(int).tolist():
        step = multiple * interval
        after = bisect_left(steps, (step, 0))
        low = steps[after - 1][1] if after else 0  # start of a line before that step
        high = steps[after][1] if after < len(steps) else lines.size  # start of a line of that step or a later one
        if high < low:  # steps go back around here
            continue
        while high - low > _FAR:
            middle = (low + high) // 2
            found = lines.at(middle)
            here = None if found is None or found[0] >= high else _step_of(found[1])
            if found is None or here is None or here >= step:
                high = middle
            else:
                low = found[0]
        for offset, line in lines.whole_ones(max(low - 1, 0), high - low + 2 * _FAR):
            here = _step_of(line)
            if here is not None and here > step:
                break
            if here == step and b'"eval/' in line:
                yield offset, line
