"""The third-party sinks: TensorBoard's event files and Weights & Biases."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from trm_core.config.schema import Config
from trm_core.errors import ConfigError

_WANDB_SERVICE = "wandb-core"


def require_package(package: str, key: str, install: str) -> None:
    """Raises ConfigError if a requested sink is not installed. A broken one fails later, without ending the run."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:  # no origin: merely a folder of that name, as wandb itself leaves behind
        raise ConfigError(f"{key} is on, but the {package} package is not installed", hint=f"{install}, or {key}=false")


class TensorBoard:
    """Event files under the run directory, one event per line of metrics.

    Uses tensorboard's record writer instead of SummaryWriter, whose second thread reports a full disk with a traceback
    on stderr and only through a later call. Nothing is done on a rewind: the new points of a step are drawn after the
    void ones.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file: BinaryIO | None = None

    def open(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names; that of a resumed run comes last.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        # Unbuffered: a write that the disk refuses must fail here, not in the destructor of a buffer.
        self.file = (self.folder / name).open("xb", buffering=0)
        self.records, self.event = RecordWriter(_Whole(self.file)), Event
        self.records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        event = self.event(wall_time=time.time(), step=step)
        for name, value in values.items():
            event.summary.value.add(tag=name, simple_value=value)
        self.records.write(event.SerializeToString())

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    def break_off(self) -> None:
        """Nothing can end a write that hangs, but its thread does not outlive the process."""


class _Whole:
    """A raw file whose `write` writes all it is given, or raises."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def write(self, data: bytes) -> None:
        while data:
            data = data[self.file.write(data) :]


class WandB:
    """Weights & Biases: online only for a user who is logged in; never prompts, never needs a network. WANDB_MODE, if
    set, is respected.

    It accepts no earlier steps: after a rewind it ignores points until training is past where it was. Its service is a
    separate process. If that has died, every call raises ConnectionError; if it hangs, calls block forever (`log` once
    the socket is full, `finish` at once), and killing the service is what unblocks them.
    """

    def __init__(self, folder: Path, config: Config, warn: Callable[[str], None]) -> None:
        self.folder, self.config, self.warn = folder, config, warn
        self.run: Any = None

    def open(self) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE", "online")
        if mode == "disabled":
            self.warn("warning: Weights & Biases: WANDB_MODE=disabled, so nothing is sent there")
            return
        online = mode == "online" and wandb_login_exists()
        if mode == "online" and not online:
            self.warn(
                "warning: Weights & Biases: no login was found (WANDB_API_KEY, .netrc), so this run is logged offline; "
                f"to upload it: wandb login, then wandb sync {self.folder}/wandb/offline-run-*"
            )
        logging = self.config.logging
        options: dict[str, Any] = {
            "project": logging.wandb_project,
            "entity": logging.wandb_entity,
            "name": self.folder.name,
            "dir": str(self.folder),
            "config": self.config.model_dump(mode="json"),
            "settings": wandb.Settings(silent=True, init_timeout=30),
        }
        try:
            self.run = wandb.init(mode="online" if online else "offline", **options)
        except wandb.errors.Error as error:
            if not online:
                raise
            self.warn(
                f"warning: Weights & Biases could not start online ({error}); logging offline into {self.folder}/wandb"
            )
            self.run = wandb.init(mode="offline", **options)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.run is not None:
            self.run.log(dict(values), step=step)

    def close(self) -> None:
        if self.run is None:
            return
        try:
            self.run.finish()
        except Exception:
            if not service_processes():
                self._forget_service()
            raise

    def break_off(self) -> None:
        for process in service_processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _forget_service(self) -> None:
        """Otherwise wandb contacts its dead service once more when Python exits, and prints a traceback."""
        import wandb

        with suppress(ConnectionError):
            wandb.teardown()


def service_processes() -> list[int]:
    """The running wandb service processes that this process has started (Linux; none are found elsewhere)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            pid, _, rest = stat.read_text().partition(" (")
            name, _, fields = rest.rpartition(") ")
            state, parent = fields.split()[:2]
            if name == _WANDB_SERVICE and state not in "ZX" and int(parent) == os.getpid():
                found.append(int(pid))
    return found


def wandb_login_exists() -> bool:
    """Whether a key is configured, without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname or "api.wandb.ai"
    netrc = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    return netrc.is_file() and host in netrc.read_text(encoding="utf-8", errors="replace")
