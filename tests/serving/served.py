"""What the tests of the server share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forked import Forked

TRM = "from trm_cli.main import main; main()"
SURE = 0.6  # of this run's samples some are after one step, some never


def as_json(fields: dict[str, Any], rows: range | list[int]) -> list[dict[str, Any]]:
    return [{name: values[row].astype(float).tolist() for name, values in fields.items()} for row in rows]


def start(run: Path, tmp_path: Path, *options: str, patch: str = "") -> tuple[Forked, str]:
    """`trm serve` in a process of its own, after the statements of `patch`; the process and its address."""
    process = Forked("serve", run, "--port", "0", *options, cwd=tmp_path, patch=patch)
    line = process.first_line()
    assert "http://127.0.0.1:" in line
    return process, line.split()[-1]
