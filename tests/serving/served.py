"""What the tests of the server share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import tiny

TRM = "from trm_cli.main import main; main()"
SURE = 0.6  # of this run's samples some are after one step, some never


def as_json(fields: dict[str, Any], rows: range | list[int]) -> list[dict[str, Any]]:
    return [{name: values[row].astype(float).tolist() for name, values in fields.items()} for row in rows]


def start(run: Path, tmp_path: Path, *options: str, patch: str = "") -> tuple[subprocess.Popen[str], str]:
    """`trm serve` in a process of its own, after the statements of `patch`; the process and its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{patch}\n{TRM}", "serve", str(run), "--port", "0", *options],
        env=tiny.environment(tmp_path),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "http://127.0.0.1:" in line, process.communicate()
    return process, line.split()[-1]
