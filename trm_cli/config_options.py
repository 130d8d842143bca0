"""Options that several commands share, with the same help: `--config`, dotted overrides, `--print-config` and more."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trm_cli.complete import complete_override
from trm_cli.console import log, print_json, table

if TYPE_CHECKING:
    from trm_core.config import LoadedConfig

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="YAML config; `extends: other.yaml` builds on another.")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Overrides with dotted keys, e.g. training.base_lr=1e-4.",
        show_default=False,
        autocompletion=complete_override,
    ),
]
RunWords = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="RUN KEY=VALUE",
        help="Run directory; default: the newest under runs/. Overrides of its config, e.g. arch.halt_threshold=1.",
        show_default=False,
    ),
]
PrintConfigOption = Annotated[
    bool, typer.Option("--print-config", help="Print the resolved config with each value's origin, and stop.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead of text.")]
IgnoreOption = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="CHECK", help="Skip this check, because what it finds is intended; repeatable."),
]


def is_override(word: str) -> bool:
    """Whether a word among others is KEY=VALUE and not a path: no key has a slash, and no such file is there."""
    # Path.exists would fail for a word that is longer than a file name may be.
    return "=" in word and "/" not in word.partition("=")[0] and not os.path.exists(word)


def run_and_overrides(words: Sequence[Path] | None) -> tuple[Path | None, list[str]]:
    """Words in any order -> a run directory, or None, and overrides of its config. Raises UsageError for two runs."""
    from trm_core.errors import UsageError

    overrides = [word for word in words or () if is_override(str(word))]
    runs = [word for word in words or () if word not in overrides]
    if len(runs) > 1:
        raise UsageError(f"one run at a time, not {' and '.join(map(str, runs))}")
    return (runs[0] if runs else None), [str(word) for word in overrides]


def load_from_cli(config: Path | None, overrides: Sequence[str] | None) -> LoadedConfig:
    """Load the config as `trm_core.config.load_config` does, and print its notes once on stderr.

    Raises ConfigError with every problem found.
    """
    from trm_core.config import load_config

    loaded = load_config(config, overrides or ())
    for note in loaded.notes:
        log(f"note: {note}")
    return loaded


def print_config(loaded: LoadedConfig, json: bool = False) -> None:
    """Print every key with its value and where it comes from: a table, or one JSON object keyed by dotted key."""
    from trm_core.config import describe

    rows = describe(loaded)
    if json:
        print_json({key: {"value": value, "origin": origin} for key, value, origin in rows})
        return
    table("", ["key", "value", "origin"], [(key, _as_yaml(value), origin) for key, value, origin in rows])


def _as_yaml(value: object) -> str:
    from trm_core.config.dump import dump_value

    return dump_value(value)
