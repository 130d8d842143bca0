"""JSON that (mostly) still parses but has other types, huge numbers, deep nesting or other keys."""

from __future__ import annotations

import json
from random import Random
from typing import Any

# Texts rather than values, because Python would not write some of them.
HOSTILE = (
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1",
    "7",
    "0.5",
    "1e308",
    "1e999",
    "-1e999",
    "NaN",
    "9223372036854775807",
    "-9223372036854775809",
    "1" + "0" * 30,
    "1" + "0" * 400,
    "9" * 5000,
    '""',
    '"x"',
    '"12"',
    r'"\u0000"',
    r'"\ud800"',
    r'"\u001b[31mred\nline"',
    '"../../outside/secret"',
    '"/etc/passwd"',
    '"' + "A" * 70_000 + '"',
    "[]",
    "[null]",
    "[1, 2, 3]",
    '["x"]',
    "{}",
    '{"x": 1}',
    "[" * 900 + "]" * 900,
    "[" * 60_000 + "]" * 60_000,
    '{"a":' * 60_000 + "1" + "}" * 60_000,
    """"!!python/object/apply:os.system ['touch executed']\"""",
)
_PLACEHOLDER = "\u2603placeholder"


def places_in(document: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a document of dicts and lists."""
    found: list[tuple[Any, Any]] = []
    items: list[tuple[Any, Any]] = []
    if isinstance(document, dict):
        items = list(document.items())
    elif isinstance(document, list):
        items = list(enumerate(document))
    for key, value in items:
        found.append((document, key))
        found += places_in(value)
    return found


def hostile_json(random: Random, text: str) -> tuple[str, str]:
    """What was done, and the text of the JSON document changed in one place."""
    document = json.loads(text)
    places = places_in(document)
    raw = random.choice(HOSTILE)
    if not places or random.random() < 0.05:
        return f"whole document: {raw[:40]}", raw
    container, key = random.choice(places)
    action = random.choice(("replace", "replace", "replace", "replace", "delete", "rename", "add"))
    if action == "delete":
        del container[key]
    elif action == "rename" and isinstance(container, dict):
        container[f"{key}_"] = container.pop(key)
    elif action == "add":
        if isinstance(container, dict):
            container["surplus"] = _PLACEHOLDER
        else:
            container.append(_PLACEHOLDER)
    else:
        action = "replace"
        container[key] = _PLACEHOLDER
    changed = json.dumps(document).replace(json.dumps(_PLACEHOLDER), raw)
    return f"{action} {key!r}: {raw[:40]}", changed
