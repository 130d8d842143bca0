"""What the shell offers after TAB besides commands, options and files. Every TAB starts a new process."""

from __future__ import annotations


def complete_override(incomplete: str) -> list[str]:
    """Config keys that begin with what has been typed; after `KEY=`, the words that the key accepts."""
    from trm_core.config.schema_keys import accepted_types, choices, leaves

    key, equals, value = incomplete.partition("=")
    if not equals:
        return [f"{name}=" for name in leaves() if name.startswith(key)]
    if key not in leaves():
        return []
    words = [*choices(key), *(("true", "false") if bool in accepted_types(key) else ())]
    return [f"{key}={word}" for word in words if word.startswith(value)]
