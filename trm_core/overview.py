"""Several run directories side by side: how far each is, how good, and in which config keys they differ.

`trm runs` lists this. A directory may be half written, damaged or a stranger's: what is wrong with it becomes part of
its summary and never stops the others. Imports neither torch nor numpy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from trm_core.config import InvalidConfig, load_config_dict
from trm_core.config.dump import describe
from trm_core.config.problems import Problem
from trm_core.config.yaml_loader import read_document
from trm_core.diagnose.run_facts import RunFacts, read_run_facts
from trm_core.diagnose.small_files import tail_of
from trm_core.errors import CheckpointError, ExitCode
from trm_core.training.run_dir import CONFIG, EVALUATION, METRICS, STATUS

STATES = ("running", "done", "stopped", "interrupted", "failed")
_WHERE = {"name", "training.run_dir"}  # keys that say where a run lies: they always differ and explain nothing
_METRICS_BYTES = 32 << 20  # how much is read of the end of metrics.jsonl
_MOST = 2.0**53  # no count or mean of a run is that large


@dataclass(frozen=True)
class Result:
    """How good a run is, in shares of answers; for puzzles, of those that are right as a whole."""

    step: int | None  # training steps of what was evaluated
    policy: str | None  # the learned one, or the first if none is learned; None: logged during training
    accuracy: float
    low: float | None  # 95 % interval
    high: float | None
    opened: float | None  # capsules per sample
    steps: float | None  # reasoning steps per sample


@dataclass(frozen=True)
class RunSummary:
    """One run directory. None: not known."""

    path: Path
    written: float  # when status.json was written, in seconds since the epoch; 0: never
    state: str  # of STATES, or killed, diverged, unknown
    step: int | None
    total_steps: int | None
    exit_code: int | None
    minutes: float | None  # from start to the last sign of life; only for a run that was started once
    puzzles: bool
    evaluated: Result | None  # from evaluation.json
    best_logged: Result | None  # without evaluation.json: the best evaluation during training
    config: Mapping[str, Any] | None  # value by dotted key
    faults: tuple[str, ...]  # what ended the run, and what cannot be read: sentences that name the file

    @property
    def result(self) -> Result | None:
        return self.evaluated or self.best_logged


def find_runs(places: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The run directories among `places` and directly inside the other folders, and a note for each place without any.
    Raises CheckpointError if there are none at all.
    """
    found: dict[Path, None] = {}
    notes = []
    for place in places:
        here = [place] if _is_run(place) else sorted(filter(_is_run, place.iterdir())) if place.is_dir() else []
        if not here:
            notes.append(f"{place} {'holds no run' if place.is_dir() else 'is not a folder'}")
        found |= dict.fromkeys(here)
    if not found:
        raise CheckpointError(
            f"no run found: {'; '.join(notes)}",
            hint="name run directories or a folder of them, or train first: trm train --config ...",
        )
    return list(found), notes


def summarise(paths: Sequence[Path]) -> list[RunSummary]:
    """Summaries of run directories, given in any order, newest first."""
    return sorted(map(_summary, paths), key=lambda one: (-one.written, str(one.path)))


def by_accuracy(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """The best first; those without a result last."""
    return sorted(runs, key=lambda one: -1.0 if one.result is None else one.result.accuracy, reverse=True)


def differing_keys(runs: Sequence[RunSummary]) -> list[str]:
    """Config keys whose values are not the same in all runs, those with the most distinct values first."""
    configs = [run.config for run in runs if run.config is not None]
    values = {
        key: len({json.dumps(config[key], sort_keys=True) for config in configs})
        for key in (configs[0] if configs else ())
        if key not in _WHERE
    }
    return sorted((key for key, count in values.items() if count > 1), key=lambda key: -values[key])


def _is_run(path: Path) -> bool:
    """Whether it is a run directory, or was meant to be: also one that is damaged or may not be read."""
    try:
        return not {CONFIG, STATUS}.isdisjoint(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def _summary(path: Path) -> RunSummary:
    facts = read_run_facts(path)
    status, faults = facts.status, []
    state = _state(facts)
    if state == "unknown":
        faults.append(f"{path / STATUS} is missing or damaged")
    elif state in ("failed", "diverged"):
        said = status.get("error")
        faults.append(f"{path}: {said:.300}" if isinstance(said, str) else f"{path} does not say why it {state}")
    evaluated = _evaluated(facts.evaluation)
    unlabelled = facts.evaluation.get("scores") == []
    if evaluated is None and not unlabelled and os.path.lexists(path / EVALUATION):
        faults.append(f"{path / EVALUATION} is damaged")
    config = None
    try:
        config = _config(path / CONFIG)
    except InvalidConfig as error:
        faults.append(str(error.problems[0]))
    puzzles = _of_puzzles(facts)
    return RunSummary(
        path, _written(path), state, _count(status.get("step")), _count(status.get("total_steps")),
        _count(status.get("exit_code")), _minutes(facts), puzzles, evaluated,
        best_logged=None if evaluated else _best_logged(path / METRICS, puzzles), config=config, faults=tuple(faults),
    )  # fmt: skip


def _state(facts: RunFacts) -> str:
    state = facts.status.get("state")
    if state not in STATES:
        return "unknown"
    if facts.was_killed:
        return "killed"
    diverged = state == "failed" and facts.status.get("exit_code") == ExitCode.DIVERGED
    return "diverged" if diverged else str(state)


def _written(path: Path) -> float:
    for name in (STATUS, CONFIG, "."):
        try:
            return (path / name).lstat().st_mtime
        except OSError:
            continue
    return 0.0


def _config(path: Path) -> dict[str, Any]:
    """Every key of a resolved config. Raises InvalidConfig, also if it is not a plain file (reading a pipe would block)
    or extends another config.
    """
    if not os.path.isfile(path):
        raise InvalidConfig([Problem(str(path), "", "is missing or not a file")])
    document = read_document(path)
    if "extends" in document.data:
        raise InvalidConfig([Problem(document.where(("extends",)), "extends", "a run's config cannot extend another")])
    if document.problems:
        raise InvalidConfig(document.problems)
    return {key: value for key, value, _ in describe(load_config_dict(document.data, name=str(path)))}


def _of_puzzles(facts: RunFacts) -> bool:
    if "puzzles" in facts.evaluation:
        return facts.evaluation["puzzles"] is True
    trained_on = facts.dataset.get("train")
    first = trained_on[0] if isinstance(trained_on, list) and trained_on else None
    kind = first.get("kind") if isinstance(first, dict) else None
    return isinstance(kind, str) and kind.startswith("puzzles")


def _minutes(facts: RunFacts) -> float | None:
    """None for several starts: how long the earlier ones lasted is not known."""
    if len(facts.starts) != 1:
        return None
    try:
        began, ended = (datetime.fromisoformat(one["time"]) for one in (facts.starts[0], facts.status))
        seconds = (ended - began).total_seconds()
    except (KeyError, ValueError, TypeError):  # no time, or one without its zone
        return None
    return seconds / 60 if seconds >= 0 else None


def _evaluated(evaluation: Mapping[str, Any]) -> Result | None:
    """The first row of the evaluation's table."""
    scores = evaluation.get("scores")
    score = scores[0] if isinstance(scores, list) and scores else None
    if not isinstance(score, dict):
        return None
    whole = "exact_" if evaluation.get("puzzles") is True else ""
    accuracy, policy = _number(score.get(f"{whole}accuracy"), 1.0), score.get("policy")
    if accuracy is None or not isinstance(policy, str):
        return None
    return Result(
        _count(evaluation.get("step")), policy, accuracy,
        _number(score.get(f"{whole}low"), 1.0), _number(score.get(f"{whole}high"), 1.0),
        _number(score.get("opened")), _number(score.get("steps")),
    )  # fmt: skip


def _best_logged(path: Path, puzzles: bool) -> Result | None:
    name = "eval/exact_accuracy" if puzzles else "eval/accuracy"
    best = None
    try:
        lines = tail_of(path, _METRICS_BYTES).splitlines()
    except OSError:
        return None
    for line in lines:
        if name.encode() not in line:
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        accuracy = _number(record.get(name), 1.0) if isinstance(record, dict) else None
        if accuracy is not None and (best is None or accuracy > best.accuracy):
            others = (_number(record.get(f"eval/{other}")) for other in ("opened", "steps"))
            best = Result(_count(record.get("step")), None, accuracy, None, None, *others)
    return best


def _number(value: object, most: float = _MOST) -> float | None:
    return float(value) if isinstance(value, (int, float)) and 0 <= value <= most else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST else None
