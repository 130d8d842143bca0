"""Writes a config back: as YAML that loads to the same config, and as rows that tell where each value came from."""

from __future__ import annotations

from io import StringIO
from typing import Any

from yaml.emitter import Emitter
from yaml.representer import SafeRepresenter
from yaml.serializer import Serializer

from trm_core.config.load import LoadedConfig
from trm_core.config.scalars import STR_TAG, PlainResolver
from trm_core.config.schema import Config
from trm_core.config.schema_keys import leaves


class _Dumper(Emitter, Serializer, SafeRepresenter, PlainResolver):
    """PyYAML's writer with our rules for which plain words are text, so that text like `1e-4` is quoted."""

    def __init__(self, stream: Any, *, flow: bool) -> None:
        Emitter.__init__(self, stream, allow_unicode=True, width=100_000)
        Serializer.__init__(self)
        SafeRepresenter.__init__(self, default_flow_style=flow, sort_keys=False)
        PlainResolver.__init__(self)

    def ignore_aliases(self, data: Any) -> bool:
        return True  # the loader refuses aliases


def _represent_text(dumper: _Dumper, text: str) -> Any:
    return dumper.represent_scalar(STR_TAG, text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _represent_text)


def dump_config(config: Config) -> str:
    """YAML of every key, defaults too. `load_config` on it gives an equal config."""
    return _dump(config.model_dump(mode="json"), flow=False)


def dump_value(value: Any) -> str:
    """One value on one line, as a config or an override would write it."""
    return _dump(value, flow=True).removesuffix("\n").removesuffix("...").removesuffix("\n")


def describe(loaded: LoadedConfig) -> list[tuple[str, Any, str]]:
    """(dotted key, plain value, origin) of every key in the schema's order, for `--print-config`."""
    values = loaded.config.model_dump(mode="json")
    rows = []
    for key in leaves():
        value: Any = values
        for part in key.split("."):
            value = value[part]
        rows.append((key, value, loaded.origins[key]))
    return rows


def _dump(value: Any, *, flow: bool) -> str:
    stream = StringIO()
    dumper = _Dumper(stream, flow=flow)
    dumper.open()
    dumper.represent(value)
    dumper.close()
    return stream.getvalue()
