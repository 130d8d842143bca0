"""Answers to all samples of a source as JSON lines, in constant memory, and resumable.

In the meantime the lines are in `<out>.part`, beside `<out>.part.json`, which records what they are answers to. A call
that was stopped resumes after the last complete line; at the end the file gets its final name.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trm_core.errors import UsageError
from trm_core.evaluation.intervals import accuracy_interval
from trm_core.evaluation.policies import Policy
from trm_core.inference.predictor import Predictor
from trm_core.inference.samples import Answer, Sample
from trm_core.inference.source import Source

_FLUSH = 64  # number of answers after which the file is flushed


@dataclass(frozen=True)
class Settings:
    """How to answer."""

    policy: str | None = None
    price: float | None = None
    confidence: float = 0.95
    batch: int = 64
    probabilities: bool = False
    decisions: bool = False


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of the answers to samples whose label is known."""

    mean: float
    low: float  # 95 % interval
    high: float
    samples: int


@dataclass(frozen=True)
class Scored:
    """What was written, with means over all its rows."""

    path: Path
    rows: int
    resumed_at: int
    steps: float
    opened: float
    spent: float
    right: float | None  # share of right answers, of those that can be judged
    valid: float | None  # share of answers that break no rule, of those to puzzles with rules
    accuracy: Accuracy | None  # None where no label is known


class Means:
    """Running means over the records of answers."""

    def __init__(self) -> None:
        self.count = 0
        self.sums = {"steps": 0.0, "opened": 0.0, "spent": 0.0}
        self.judged: dict[str, list[bool]] = {"right": [], "valid": []}
        self._accuracies: list[float] = []

    def add(self, record: dict[str, Any]) -> None:
        self.count += 1
        opened = len(record.get("opened_in_all", record.get("opened", ())))
        spent = record.get("spent_in_all", record.get("spent", 0.0))
        steps = record.get("steps_in_all", record["steps"])
        for name, value in (("steps", steps), ("opened", opened), ("spent", spent)):
            self.sums[name] += value
        for name, found in self.judged.items():
            if record.get(name) is not None:
                found.append(record[name])
        share = record.get("accuracy", record.get("right"))
        if share is not None:
            self._accuracies.append(float(share))

    def accuracy(self) -> Accuracy | None:
        """None where no label is known."""
        found = torch.tensor(self._accuracies, dtype=torch.float64)
        return Accuracy(float(found.mean()), *accuracy_interval(found), len(found)) if len(found) else None

    def as_dict(self) -> dict[str, Any]:
        """The means of `Scored`."""
        means = {name: value / max(self.count, 1) for name, value in self.sums.items()}
        return means | {name: sum(found) / len(found) if found else None for name, found in self.judged.items()}


def score(
    predictor: Predictor,
    source: Source,
    out: Path,
    settings: Settings,
    on_rows: Callable[[int, int | None], None] = lambda done, total: None,
    check: Callable[[], None] = lambda: None,
) -> Scored:
    """Write `out`, which must not exist. check: raises to stop; the lines written so far stay. Raises DataError for a
    sample that cannot be answered, UsageError for an output that belongs to another call.
    """
    if out.exists():
        raise UsageError(f"{out} exists already", hint="name another --out, or remove it first")
    policy = predictor.policy(settings.policy, settings.price, settings.confidence)
    part, note = out.with_name(out.name + ".part"), out.with_name(out.name + ".part.json")
    means = _go_on(part, note, source, _identity(predictor, source, settings))
    done = means.count
    try:
        _answer_rest(predictor, policy, source, means, part, settings, on_rows, check)
    finally:
        if part.stat().st_size == 0:  # nothing to resume from
            part.unlink()
            note.unlink()
    on_rows(means.count, means.count)
    part.rename(out)
    note.unlink()
    return Scored(out, means.count, done, **means.as_dict(), accuracy=means.accuracy())


def answers(
    predictor: Predictor, policy: Policy, source: Source, settings: Settings, first: int = 0
) -> Iterator[tuple[Sample, Answer, dict[str, Any]]]:
    """Every sample from row `first` on, with its answer and the record to write."""
    asked: deque[Sample] = deque()

    def remembered() -> Iterator[Sample | None]:
        for sample in source.start(first):
            if sample is not None:
                asked.append(sample)
            yield sample

    for row, answer in enumerate(predictor.stream(remembered(), policy, settings.batch, first=first), start=first):
        sample = asked.popleft()
        record = {"row": row, **source.record(sample, answer, settings.probabilities)}
        if not settings.decisions:
            record.pop("decisions", None)
        yield sample, answer, record


def _answer_rest(
    predictor: Predictor,
    policy: Policy,
    source: Source,
    means: Means,
    part: Path,
    settings: Settings,
    on_rows: Callable[[int, int | None], None],
    check: Callable[[], None],
) -> None:
    """Append the lines of the rows that `means` does not contain yet."""
    with part.open("a", encoding="utf-8") as file:
        for number, (_, _, record) in enumerate(answers(predictor, policy, source, settings, means.count), start=1):
            file.write(json.dumps(record) + "\n")
            means.add(record)
            if number % _FLUSH == 0 or source.rows is None:
                file.flush()
                on_rows(means.count, source.rows)
                check()
        file.flush()
        os.fsync(file.fileno())


def _identity(predictor: Predictor, source: Source, settings: Settings) -> dict[str, Any]:
    """What all lines of a file have in common. `batch` is not part of it, because it changes no answer."""
    trained = predictor.trained
    asked = {name: value for name, value in asdict(settings).items() if name != "batch"}
    model = {"model": str(trained.source.resolve()), "step": trained.about.get("step")}
    thinking = {"max_steps": trained.max_steps, "restarts": predictor.beginnings.count}
    return {**model, **thinking, **source.identity, **asked}


def _go_on(part: Path, note: Path, source: Source, identity: dict[str, Any]) -> Means:
    """Means of the rows that are answered already; an incomplete line at the end is cut off."""
    means = Means()
    if not part.exists():
        note.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")
        return means
    if source.rows is None:
        raise UsageError(
            f"{part} exists, but answers to {source.name} cannot be continued",
            hint="name another --out, or remove that file",
        )
    try:
        before = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if before != identity:
        changed = [
            name for name, value in identity.items() if not isinstance(before, dict) or before.get(name) != value
        ]
        raise UsageError(
            f"{part} was written with another {', '.join(changed)}", hint="name another --out, or remove that file"
        )
    with part.open("r+b") as file:
        end = 0
        for line in file:
            record = _record_of(line, means.count) if line.endswith(b"\n") and means.count < source.rows else None
            if record is None:
                break
            means.add(record)
            end += len(line)
        file.truncate(end)
    return means


def _record_of(line: bytes, row: int) -> dict[str, Any] | None:
    """The record in a line, if it is that of the row."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and record.get("row") == row and "steps" in record else None
