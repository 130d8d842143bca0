"""Where metrics go: metrics.jsonl always, TensorBoard and Weights & Biases when asked for. One interface, no
prompts.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from trm_core.config.schema import Config
from trm_core.errors import ConfigError
from trm_core.training import run_dir


class MetricsLogger(Protocol):
    """Takes numbers by step."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def rewind(self, step: int) -> None:
        """Training went back to `step`: what was logged after it is void."""

    def close(self) -> None: ...


class JsonLines:
    """One JSON object per call, appended at once, so that a killed run keeps what it measured. NaN is null.

    What a full disk does not take waits in memory, and is written as soon as it does.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.path, self.warn = path, warn
        self.file = path.open("ab", buffering=0)
        self.waiting = b""
        self.failing = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.waiting += json.dumps({"step": step, **finite}).encode() + b"\n"
        try:
            while self.waiting:
                self.waiting = self.waiting[self.file.write(self.waiting) :]
            self.failing = False
        except OSError as error:
            if not self.failing:
                self.warn(f"warning: cannot write {self.path}: {error.strerror}; its lines wait in memory")
            self.failing = True

    def rewind(self, step: int) -> None:
        self.file.close()
        truncate_after(self.path, step)
        self.file = self.path.open("ab", buffering=0)
        self.waiting = b""

    def close(self) -> None:
        self.file.close()


def truncate_after(path: Path, step: int) -> None:
    """Drop lines of steps past `step`, and what is no line of metrics (a torn last one), so that a resumed run does not
    log them twice.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        logged = record.get("step", 0) if isinstance(record, dict) else None
        if isinstance(logged, int) and logged <= step:
            kept.append(line)
    run_dir.write_atomic(path, "".join(line + "\n" for line in kept))


class TensorBoard:
    """Event files under the run directory."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "logging.tensorboard is on, but the tensorboard package is not installed",
                hint="pip install 'trm[tensorboard]', or logging.tensorboard=false",
            ) from error
        self.writer = SummaryWriter(str(folder))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def rewind(self, step: int) -> None:
        """Event files cannot be shortened; the later points of a step are drawn after the void ones."""

    def close(self) -> None:
        self.writer.close()


class WandB:
    """Weights & Biases: online only for a user who is logged in; never asks, never needs a network."""

    def __init__(self, folder: Path, config: Config, warn: Callable[[str], None]) -> None:
        import wandb

        # WANDB_MODE, where it is set, is the user's word.
        online = os.environ.get("WANDB_MODE", "online") == "online" and wandb_login_exists()
        logging = config.logging
        settings = wandb.Settings(silent=True, init_timeout=30)
        options: dict[str, Any] = {
            "project": logging.wandb_project,
            "entity": logging.wandb_entity,
            "name": folder.name,
            "dir": str(folder),
            "config": config.model_dump(mode="json"),
            "settings": settings,
        }
        try:
            self.run = wandb.init(mode="online" if online else "offline", **options)
        except wandb.errors.Error as error:
            warn(f"Weights & Biases could not start online ({error}); logging offline into {folder}/wandb")
            self.run = wandb.init(mode="offline", **options)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def rewind(self, step: int) -> None:
        """W&B takes no earlier steps: it ignores points until training is past where it was."""

    def close(self) -> None:
        self.run.finish()


def wandb_login_exists() -> bool:
    """Whether a key is configured, without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path.home() / ".netrc"
    return netrc.is_file() and "api.wandb.ai" in netrc.read_text(encoding="utf-8", errors="replace")


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
    loggers: list[MetricsLogger] = [JsonLines(run / run_dir.METRICS, warn)]
    if config.logging.tensorboard:
        loggers.append(TensorBoard(run / "tensorboard"))
    if config.logging.wandb:
        loggers.append(WandB(run, config, warn))
    return AllLoggers(loggers)
