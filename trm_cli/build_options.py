"""What `trm build-capsules` and `trm build-puzzles` share: sources mixed with overrides, flags that set config keys,
two forms of config file, progress, and signals that stop a build.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trm_core.config import LoadedConfig


def sources_and_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate sources from dotted overrides, which come in one list."""
    paths: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        key, sign, _ = argument.partition("=")
        is_override = bool(sign) and key.startswith("data.") and not Path(argument).exists()
        (overrides if is_override else paths).append(argument)
    return paths, overrides


def as_overrides(section: str, flags: dict[str, Any]) -> list[str]:
    """The flags that were given, as overrides of `data.<section>`."""
    # As JSON, because YAML reads it back with the same types: a column called 1 or no stays text.
    return [f"data.{section}.{name}={json.dumps(value)}" for name, value in flags.items() if value is not None]


def load(section: str, config: Path | None, overrides: Sequence[str]) -> LoadedConfig:
    """Load a training config, or a file that holds only the keys of `data.<section>`."""
    from trm_core.config import load_config, load_config_dict
    from trm_core.config.schema import DataConfig
    from trm_core.config.yaml_loader import read_document

    if config is not None:
        values = read_document(config).data
        keys = type(getattr(DataConfig(), section)).model_fields
        if values and set(values) <= set(keys):
            return load_config_dict({"data": {section: values}}, overrides, name=str(config))
    return load_config(config, overrides)  # its notes concern training, so they are not shown


@contextmanager
def stages(names: dict[str, str]) -> Iterator[Callable[[str, int, int], None]]:
    """A progress callback that shows one stage after another. names: stage -> text shown."""
    from trm_cli.progress import progress

    with progress("reading") as bar:
        yield lambda stage, done, total: bar.update(done, total=total or None, label=names.get(stage, stage))


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Within the context, SIGTERM and SIGINT are only recorded in the list; a second Ctrl-C stops at once."""
    caught: list[int] = []

    def remember(number: int, frame: object) -> None:
        caught.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
