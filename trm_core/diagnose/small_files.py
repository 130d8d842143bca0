"""Read small files of a run directory so that none can stall a diagnosis: no pipe, no device, no file that is huge.

Imports nothing heavy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_RECORD_BYTES = 16 << 20


def tail_of(path: Path, most: int) -> bytes:
    """The last `most` bytes. Raises OSError, also if it is not a regular file."""
    if not path.is_file():  # reading a pipe would block, and a device has no end
        raise FileNotFoundError(f"{path} is not a file")
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - most))
        return file.read(most)


def record_of(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if it is missing, unreadable, or larger than any that we write."""
    try:
        found = json.loads(tail_of(path, _RECORD_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
