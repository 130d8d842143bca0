"""Where samples come from, whatever the form of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trm_core.inference.samples import Answer, Sample


def plain_record(sample: Sample, answer: Answer, probabilities: bool) -> dict[str, Any]:
    """What is written of an answer."""
    return answer.as_record(probabilities)


@dataclass(frozen=True)
class Source:
    """`start(row)` gives the samples from that row on; `record` makes what is written of an answer: a sample, its
    answer, and whether probabilities are wanted.
    """

    path: Path
    rows: int
    start: Callable[[int], Iterator[Sample]]
    identity: dict[str, Any]
    record: Callable[[Sample, Answer, bool], dict[str, Any]] = plain_record


def identity_of_file(path: Path) -> dict[str, Any]:
    """What changes with a file."""
    stat = path.stat()
    return {"data": str(path.resolve()), "split": None, "content_hash": [stat.st_size, stat.st_mtime_ns]}
