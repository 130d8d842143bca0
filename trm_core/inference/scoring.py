"""Answers to all samples of a source as JSON lines, in constant memory, and resumable.

While it is under way the lines are in `<out>.part`, beside `<out>.part.json`, which says of what they are answers. A
call that was stopped goes on after its last whole line; at the end the file gets its name.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trm_core.errors import UsageError
from trm_core.evaluation.policies import Policy
from trm_core.inference.predictor import Predictor
from trm_core.inference.samples import Answer, Sample
from trm_core.inference.source import Source

_FLUSH = 64  # answers after which what was written is handed to the system


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
class Scored:
    """What was written; means over the rows answered by this call."""

    path: Path
    rows: int
    resumed_at: int
    steps: float
    opened: float
    spent: float
    right: float | None  # share of the answers that are known to be right among those of known puzzles
    valid: float | None  # share of the answers that break no rule among those of puzzles with rules


class Means:
    """Over the rows answered by a call."""

    def __init__(self) -> None:
        self.count = 0
        self.sums = {"steps": 0.0, "opened": 0.0, "spent": 0.0}
        self.judged: dict[str, list[bool]] = {"right": [], "valid": []}

    def add(self, answer: Answer, record: dict[str, Any]) -> None:
        self.count += 1
        cost = answer.cost
        for name, value in (("steps", cost.steps), ("opened", len(cost.opened)), ("spent", cost.spent)):
            self.sums[name] += value
        for name, found in self.judged.items():
            if record.get(name) is not None:
                found.append(record[name])

    def as_dict(self) -> dict[str, Any]:
        """The means of `Scored`."""
        means = {name: value / max(self.count, 1) for name, value in self.sums.items()}
        return means | {name: sum(found) / len(found) if found else None for name, found in self.judged.items()}


def score(
    predictor: Predictor,
    source: Source,
    out: Path,
    settings: Settings,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
    check: Callable[[], None] = lambda: None,
) -> Scored:
    """Write `out`, which must not exist. check: raises to stop; what was written stays. Raises DataError for a sample
    that cannot be answered, UsageError for an output that belongs to another call.
    """
    if out.exists():
        raise UsageError(f"{out} exists already", hint="name another --out, or remove it first")
    policy = predictor.policy(settings.policy, settings.price, settings.confidence)
    part, note = out.with_name(out.name + ".part"), out.with_name(out.name + ".part.json")
    done = _go_on(part, note, source, _identity(predictor, source, settings))
    try:
        means = _answer_rest(predictor, policy, source, done, part, settings, on_rows, check)
    finally:
        if part.stat().st_size == 0:  # nothing to go on from
            part.unlink()
            note.unlink()
    on_rows(source.rows, source.rows)
    part.rename(out)
    note.unlink()
    return Scored(out, source.rows, done, **means.as_dict())


def answers(
    predictor: Predictor, policy: Policy, source: Source, settings: Settings, first: int = 0
) -> Iterator[tuple[Answer, dict[str, Any]]]:
    """Every answer from row `first` on, and what is written of it."""
    asked: deque[Sample] = deque()

    def remembered() -> Iterator[Sample]:
        for sample in source.start(first):
            asked.append(sample)
            yield sample

    for row, answer in enumerate(predictor.stream(remembered(), policy, settings.batch, first=first), start=first):
        record = {"row": row, **source.record(asked.popleft(), answer, settings.probabilities)}
        if not settings.decisions:
            record.pop("decisions", None)
        yield answer, record


def _answer_rest(
    predictor: Predictor,
    policy: Policy,
    source: Source,
    done: int,
    part: Path,
    settings: Settings,
    on_rows: Callable[[int, int], None],
    check: Callable[[], None],
) -> Means:
    """Append the lines from row `done` on."""
    means = Means()
    with part.open("a", encoding="utf-8") as file:
        for answer, record in answers(predictor, policy, source, settings, done):
            file.write(json.dumps(record) + "\n")
            means.add(answer, record)
            if means.count % _FLUSH == 0:
                file.flush()
                on_rows(done + means.count, source.rows)
                check()
        file.flush()
        os.fsync(file.fileno())
    return means


def _identity(predictor: Predictor, source: Source, settings: Settings) -> dict[str, Any]:
    """What all lines of a file have in common. Not `batch`, which changes no answer."""
    trained = predictor.trained
    asked = {name: value for name, value in asdict(settings).items() if name != "batch"}
    model = {"model": str(trained.source.resolve()), "step": trained.about.get("step")}
    thinking = {"max_steps": trained.max_steps, "restarts": predictor.beginnings.count}
    return {**model, **thinking, **source.identity, **asked}


def _go_on(part: Path, note: Path, source: Source, identity: dict[str, Any]) -> int:
    """How many rows are answered already; the half of a line at the end is cut off."""
    if not part.exists():
        note.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")
        return 0
    try:
        before = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if before != identity:
        changed = [
            name for name, value in identity.items() if not isinstance(before, dict) or before.get(name) != value
        ]
        raise UsageError(
            f"{part} was begun with another {', '.join(changed)}", hint="name another --out, or remove that file"
        )
    done = 0
    with part.open("r+b") as file:
        end = 0
        for line in file:
            if not line.endswith(b"\n") or not _is_row(line, done):
                break
            done, end = done + 1, end + len(line)
        file.truncate(end)
    return min(done, source.rows)


def _is_row(line: bytes, row: int) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and record.get("row") == row
