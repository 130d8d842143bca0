"""The small files of a run directory, read so that none can hold a diagnosis up: neither a pipe, nor a device, nor one
that is not small. Imports nothing heavy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_RECORD_BYTES = 16 << 20


def tail_of(path: Path, most: int) -> bytes:
    """The last `most` bytes. Raises OSError, also for what is no regular file."""
    if not path.is_file():  # a pipe would be waited for, a device has no end
        raise FileNotFoundError(f"{path} is not a file")
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - most))
        return file.read(most)


def record_of(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if that is missing, unreadable, or larger than any that is written."""
    try:
        found = json.loads(tail_of(path, _RECORD_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
