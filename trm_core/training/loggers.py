"""Where metrics go: always to metrics.jsonl, to TensorBoard and Weights & Biases on request. One interface, no
prompts. Only metrics.jsonl is our own code; the others are guarded (`guarded.py`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from trm_core.config.schema import Config
from trm_core.training import run_dir
from trm_core.training.guarded import Guarded
from trm_core.training.third_party import TensorBoard, WandB, require_package


class MetricsLogger(Protocol):
    """Takes numbers by step."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def rewind(self, step: int) -> None:
        """Training went back to `step`: what was logged after it is void."""

    def close(self) -> None: ...


class JsonLines:
    """One JSON object per call, appended at once, so that a killed run keeps what it measured. NaN and infinity become
    null. What a full disk does not take waits in memory until it does. A file that somebody removes or replaces during
    the run is written anew: its lines can still be read by whoever has it open.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.path, self.warn = path, warn
        self.file = path.open("a+b", buffering=0)
        self.waiting = b""
        self.failing = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.waiting += json.dumps({"step": step, **finite}).encode() + b"\n"
        self.write()

    def write(self) -> None:
        """Write what waits, as far as the disk takes it."""
        try:
            if os.fstat(self.file.fileno()).st_nlink == 0:
                self.write_anew()
            while self.waiting:
                self.waiting = self.waiting[self.file.write(self.waiting) :]
            self.failing = False
        except OSError as error:
            if not self.failing:
                self.warn(f"warning: cannot write {self.path}: {error.strerror}; its lines are kept in memory")
            self.failing = True

    def write_anew(self) -> None:
        """Go on in a new file, with the lines of the one that was removed; or in the one that has taken its place."""
        replaced = self.path.exists()
        file = self.path.open("a+b", buffering=0)
        if not replaced:
            self.file.seek(0)
            self.waiting = self.file.readall() + self.waiting
        self.file.close()
        self.file = file
        what = "replaced; new lines follow those already in it" if replaced else "removed; its lines are written again"
        self.warn(f"warning: {self.path} was {what}")

    def rewind(self, step: int) -> None:
        """Truncates the file in place, which a full disk allows too."""
        self.file.seek(0)
        on_disk = self.file.readall()
        valid = _until(on_disk + self.waiting, step)
        self.file.truncate(min(len(valid), len(on_disk)))
        self.waiting = valid[len(on_disk) :]

    def close(self) -> None:
        self.write()
        if self.waiting:
            self.warn(f"warning: {self.path}: the lines kept in memory are lost")
        with suppress(OSError):  # as where the disk went away: it must not hide what ended the run
            self.file.close()


def _until(lines: bytes, step: int) -> bytes:
    """The lines before the first one of a step past `step`."""
    end = 0
    for line in lines.splitlines(keepends=True):
        if (_step_of(line) or 0) > step:
            break
        end += len(line)
    return lines[:end]


def _step_of(line: str | bytes) -> int | None:
    """None for what is not a line of metrics: a torn line, or one that trm did not write."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = record.get("step", 0) if isinstance(record, dict) else None
    return step if isinstance(step, int) else None


def truncate_after(path: Path, step: int) -> None:
    """Drop lines of steps past `step`, so that a resumed run does not log them twice, and what is not a line of metrics
    (such as a torn last line).
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = [line for line in lines if (logged := _step_of(line)) is not None and logged <= step]
    run_dir.write_atomic(path, "".join(line + "\n" for line in kept))


class AllLoggers:
    """Passes every call on."""

    def __init__(self, loggers: list[MetricsLogger]) -> None:
        self.loggers = loggers

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for logger in self.loggers:
            logger.log(step, values)

    def rewind(self, step: int) -> None:
        for logger in self.loggers:
            logger.rewind(step)

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()


def open_loggers(run: Path, config: Config, warn: Callable[[str], None]) -> AllLoggers:
    """The loggers that the config asks for, metrics.jsonl first."""
    logging = config.logging
    if logging.tensorboard:
        require_package("tensorboard", "logging.tensorboard", "pip install 'trm[tensorboard]'")
    if logging.wandb:
        require_package("wandb", "logging.wandb", "pip install wandb")
    loggers: list[MetricsLogger] = [JsonLines(run / run_dir.METRICS, warn)]
    if logging.tensorboard:
        loggers.append(Guarded("TensorBoard", TensorBoard(run / "tensorboard"), warn))
    if logging.wandb:
        loggers.append(Guarded("Weights & Biases", WandB(run, config, warn), warn))
    return AllLoggers(loggers)
