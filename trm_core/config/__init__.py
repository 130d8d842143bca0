"""The configuration: `load_config` reads YAML and overrides into a `Config`; `dump_config` writes one back.

Names are imported on first use, because pydantic takes a tenth of a second that `trm --help` does not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trm_core.config.dump import describe as describe
    from trm_core.config.dump import dump_config as dump_config
    from trm_core.config.load import LoadedConfig as LoadedConfig
    from trm_core.config.load import load_config as load_config
    from trm_core.config.load import load_config_dict as load_config_dict
    from trm_core.config.problems import InvalidConfig as InvalidConfig
    from trm_core.config.schema import Config as Config

_HOME = {
    "Config": "schema",
    "InvalidConfig": "problems",
    "LoadedConfig": "load",
    "describe": "dump",
    "dump_config": "dump",
    "load_config": "load",
    "load_config_dict": "load",
}

__all__ = ["Config", "InvalidConfig", "LoadedConfig", "describe", "dump_config", "load_config", "load_config_dict"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
