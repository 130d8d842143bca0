"""The reference of all config keys, read off the schema, which is the one place where a key is described.

python -m trm_core.config.reference > docs/configuration.md
"""

from __future__ import annotations

from pydantic_core import PydanticUndefined

from trm_core.config.aliases import aliases
from trm_core.config.dump import dump_value
from trm_core.config.schema import Section, WeightedPath, WeightRange
from trm_core.config.schema_keys import expectation, leaves, sections
from trm_core.markdown import table

# Keys whose value may be a mapping, with the model of that mapping.
MAPPINGS: tuple[tuple[str, type[Section]], ...] = (("data.path", WeightedPath), ("loss_weights.dqn_loss", WeightRange))

INTRODUCTION = """\
# Configuration

<!-- Generated: python -m trm_core.config.reference > docs/configuration.md -->

A config is a YAML file of sections. Every key has a default, so a file holds only what differs:

```yaml
extends: small.yaml         # optional: another file, relative to this one; this file's keys win
data:
  path: reviews.h5
training:
  base_lr: 1e-4
```

On the command line a key is written with dots, after the file: `trm train --config c.yaml training.base_lr=3e-4`. A
key that does not exist, a wrong type or a value out of range is an error that names the file, the line and the nearest
key; all errors are listed at once (exit code 3). With `--print-config` a command prints every value and its origin.

Keys may be written with dots in a file, too. Section `arch` may be called `model`. The column *also* has other
spellings that are accepted. Paths are relative to the folder that the command is run in.
"""


def default(key: str) -> str:
    """The default value of a dotted key, as a config would write it."""
    value = leaves()[key].default
    assert value is not PydanticUndefined, f"{key} has no default"
    if isinstance(value, Section):
        value = value.model_dump()
    return dump_value(list(value) if isinstance(value, tuple) else value)


def other_spellings(key: str) -> list[str]:
    """What else a dotted key may be called, besides `model` for `arch`."""
    return [spelling for spelling, canonical in aliases().items() if canonical == key]


def meaning(key: str) -> str:
    """The schema's description of a dotted key; a test makes sure that every key has one."""
    return leaves()[key].description or ""


def page() -> str:
    """docs/configuration.md."""
    lines = [INTRODUCTION]
    for name, section in sections().items():
        keys = [key for key in leaves() if key.rpartition(".")[0] == name]
        lines += [f"## {name or 'Top level'}", "", _sentence(section), ""]
        lines += table(("key", "takes", "default", "also", "meaning"), map(_row, keys))
        lines += [line for key, mapping in MAPPINGS if key in keys for line in _mapping(key, mapping)]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _row(key: str) -> tuple[str, ...]:
    also = ", ".join(f"`{spelling}`" for spelling in other_spellings(key))
    return f"`{key}`", expectation(key), f"`{default(key)}`", also, meaning(key)


def _mapping(key: str, mapping: type[Section]) -> list[str]:
    fields = [f"- `{name}`: {field.description}" for name, field in mapping.model_fields.items()]
    return ["", f"The mapping that `{key}` takes. {_sentence(mapping)}", "", *fields]


def _sentence(section: type[Section]) -> str:
    return " ".join((section.__doc__ or "").split())


if __name__ == "__main__":
    print(page(), end="")
