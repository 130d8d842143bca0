"""Turns a YAML file, the files it extends and the command line's overrides into a validated `Config`.

    extends: base.yaml          # relative to this file; the base may extend another
    training:
      base_lr: 1e-4

Later layers win key by key; lists and free mappings (`data.build.groups`) are replaced whole. Paths inside a config
(`data.path`, `data.eval_path`, `data.source`, `data.cache_dir`, `training.run_dir`) are relative to the working
directory, as on a command line. Everything that is wrong is reported at once, as `InvalidConfig`.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trm_core.config.aliases import without_effect
from trm_core.config.layers import (
    COMMAND_LINE,
    Layer,
    Setting,
    layer_of_document,
    layer_of_overrides,
    nearest,
    show,
)
from trm_core.config.problems import InvalidConfig, Problem
from trm_core.config.schema import Config
from trm_core.config.schema_keys import accepted_types, choices, expectation, leaves, sections
from trm_core.config.yaml_loader import Document, read_document

DEFAULT = "default"
OVERRIDE = "override"
_NEARLY_ALL = 0.9  # share of all keys: a file that an earlier version wrote lacks some


@dataclass(frozen=True)
class LoadedConfig:
    """A valid config. `origins` gives "file:line", "override" or "default" for every dotted key; `notes` are sentences
    to show once; `path` is the file, or None when only defaults and overrides were used.
    """

    config: Config
    origins: dict[str, str]
    notes: list[str]
    path: Path | None


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Load `path` (None: the defaults) and apply dotted overrides such as "training.base_lr=1e-4".

    Raises InvalidConfig (a ConfigError) that holds every problem of every layer.
    """
    layers = [] if path is None else _file_layers(Path(path))
    return _resolve([*layers, layer_of_overrides(overrides)], None if path is None else Path(path))


def load_recorded(path: Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """As `load_config`, from what a run wrote itself: if that is wrong, it is not the user who mistyped."""
    try:
        return load_config(path, overrides)
    except InvalidConfig as error:
        if not any(problem.where.startswith(str(path)) for problem in error.problems):
            raise
        hint = (
            f"{path} was written by a run: by another version of trm (environment.json beside it names it), or edited"
        )
        raise InvalidConfig(error.problems, hint=hint) from None


def load_config_dict(data: Mapping[str, Any], overrides: Sequence[str] = (), *, name: str = "config") -> LoadedConfig:
    """As `load_config`, from plain nested values instead of a file; `name` stands for the file in messages."""
    return _resolve([layer_of_document(Document(name, dict(data))), layer_of_overrides(overrides)], None)


def _file_layers(path: Path) -> list[Layer]:
    """The layers of a file and of what it extends, the deepest base first."""
    layers: list[Layer] = []
    chain: list[Path] = []
    named_at: Problem | None = None
    next_path: Path | None = path
    while next_path is not None:
        current, next_path = next_path, None
        resolved = current.resolve()
        if resolved in chain and named_at is not None:
            what = f"{named_at.what} leads back to a file that extends this one"
            layers.append(Layer(problems=[Problem(named_at.where, named_at.key, what)]))
            break
        chain.append(resolved)
        try:
            document = read_document(current)
        except InvalidConfig as error:
            layers.append(Layer(problems=[*error.problems]))
            if named_at is not None:  # say which file asked for it
                layers[-1].problems = [
                    Problem(named_at.where, named_at.key, f"{problem.where} {problem.what}")
                    for problem in error.problems
                ]
            break
        layer = layer_of_document(document)
        layers.append(layer)
        base = document.data.get("extends")
        where = document.where(("extends",))
        if isinstance(base, str) and base:
            next_path = Path(os.path.normpath(current.parent / base))
            named_at = Problem(where, "extends", base)
        elif "extends" in document.data:
            layer.problems.append(Problem(where, "extends", f"expected the path of one YAML file; got {show(base)}"))
    return layers[::-1]


def _resolve(layers: Sequence[Layer], path: Path | None) -> LoadedConfig:
    problems = [problem for layer in layers for problem in layer.problems]
    final: dict[str, Setting] = {}
    for layer in layers:
        for setting in layer.settings:
            final[setting.key] = _on_top(final.get(setting.key), setting)
    config, invalid = _validate(final)
    problems += invalid
    if config is None or problems:
        raise InvalidConfig(sorted(problems, key=_reading_order))
    origins = {key: _origin(final[key]) if key in final else DEFAULT for key in leaves()}
    notes = [*without_effect(config, _said(layers, final, config)), *_builds_without_effect(config, final)]
    return LoadedConfig(config, origins, notes, path)


def _said(layers: Sequence[Layer], final: Mapping[str, Setting], config: Config) -> list[str]:
    """The keys that somebody set on purpose. A file with (nearly) all keys was written by a run or by `trm diagnose
    --fix`: a value in it that equals its default was nobody's choice.
    """
    written = {_file_of(layer.settings[0]) for layer in layers if len(layer.settings) > _NEARLY_ALL * len(leaves())} - {
        COMMAND_LINE
    }
    return [key for key, setting in final.items() if _file_of(setting) not in written or not _is_default(config, key)]


def _is_default(config: Config, key: str) -> bool:
    field = leaves().get(key)
    return field is not None and bool(functools.reduce(getattr, key.split("."), config) == field.default)


def _builds_without_effect(config: Config, final: Mapping[str, Setting]) -> list[str]:
    """A sentence about build settings that were given beside data.path or on the command line, although nothing is
    built. Those in another file belong to the source that data.path replaced, and one that equals its default is not
    mentioned.
    """
    if config.data.path is None:
        return []
    places = {COMMAND_LINE, _file_of(final["data.path"])}
    moot = [
        key
        for key, setting in final.items()
        if key.startswith(("data.build.", "data.puzzles."))
        and _file_of(setting) in places
        and not _is_default(config, key)
    ]
    if not moot:
        return []
    return [f"{', '.join(moot)}: no effect, as data.path is given and nothing is built"]


def _file_of(setting: Setting) -> str:
    """The file that a setting stands in, or the command line."""
    return setting.where if setting.where == COMMAND_LINE else setting.where.rpartition(":")[0]


def _reading_order(problem: Problem) -> tuple[bool, str, int]:
    """Files first and from top to bottom, then the command line."""
    file, _, line = problem.where.partition(", ")[0].rpartition(":")
    return (problem.where == COMMAND_LINE, file, int(line)) if line.isdigit() else (True, problem.where, 0)


def _origin(setting: Setting) -> str:
    return OVERRIDE if setting.where == COMMAND_LINE else setting.where


def _on_top(below: Setting | None, setting: Setting) -> Setting:
    """The result of putting `setting` on top of `below`: it replaces all of it, or one entry of its mapping."""
    if setting.item is None:
        return setting
    entries = below.value if below is not None and isinstance(below.value, dict) else {}
    return Setting(setting.key, {**entries, setting.item: setting.value}, setting.where, setting.written)


def _validate(settings: Mapping[str, Setting]) -> tuple[Config | None, list[Problem]]:
    try:
        # In strict JSON mode "yes" is no boolean, true no number and "3" not 3, but a list may fill a tuple.
        return Config.model_validate_json(json.dumps(_nested(settings)), strict=True), []
    except ValidationError as error:
        problems = _readable(error, settings)
    # Pydantic checks a section as a whole only when each of its keys is valid: validate again without the invalid ones.
    wrong = {key for key in problems if key in settings}
    rest = {key: setting for key, setting in settings.items() if key not in wrong}
    if wrong:
        try:
            Config.model_validate_json(json.dumps(_nested(rest)), strict=True)
        except ValidationError as error:
            for name, problem in _readable(error, rest).items():
                if not any(key in wrong for key in _named_keys(problem.key, problem.what)):
                    problems.setdefault(name, problem)
    return None, list(problems.values())


def _nested(settings: Mapping[str, Setting]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, setting in settings.items():
        *parents, name = key.split(".")
        target = nested
        for parent in parents:
            target = target.setdefault(parent, {})
        target[name] = _whole(key, setting.value)
    return nested


def _whole(key: str, value: Any) -> Any:
    """1e5 for a key that wants a whole number is 100000."""
    kinds = accepted_types(key)
    if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
        return int(value)
    return value


def _readable(error: ValidationError, settings: Mapping[str, Setting]) -> dict[str, Problem]:
    """One problem per key (pydantic reports every member of a union separately), and one per failed section check."""
    problems: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        location = [str(part) for part in detail["loc"]]
        key = _known_prefix(location)
        if detail["type"] == "value_error":
            message = detail["msg"].removeprefix("Value error, ")
            places = dict.fromkeys(settings[name].where for name in _named_keys(key, message) if name in settings)
            problems.setdefault(f"{key}: {message}", Problem(", ".join(places), key, message))
        elif key in settings:
            setting = settings[key]
            problems.setdefault(key, Problem(setting.where, setting.written, _mismatch(key, setting.value)))
        else:
            raise error  # a default that breaks its own schema is our bug
    return problems


def _known_prefix(location: Sequence[str]) -> str:
    for length in range(len(location), 0, -1):
        name = ".".join(location[:length])
        if name in leaves() or name in sections():
            return name
    return ""


def _named_keys(section: str, message: str) -> list[str]:
    """The keys of a section that a message about the section names."""
    words = set(re.findall(r"\w+", message))
    prefix = f"{section}." if section else ""
    return [key for key in leaves() if key == section or (key.startswith(prefix) and key.removeprefix(prefix) in words)]


def _mismatch(key: str, value: Any) -> str:
    what = f"expected {expectation(key)}; got {show(value)}"
    if isinstance(value, str):
        guess = nearest(value, choices(key))
        if guess is not None:
            what += f"; did you mean {guess!r}?"
    elif isinstance(value, (bool, int, float)) and str in accepted_types(key) and not choices(key):
        what += " (put it in quotes to make it text)"
    return what
