"""Which code a run was started from: commit, uncommitted changes and their diff. Never fails and never takes long: if
git is missing, slow or refuses, the record says so and the run goes on.
"""

from __future__ import annotations

import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIFF_LIMIT = 1_000_000  # bytes
_SECONDS = 10.0  # for all queries of one repository


@dataclass(frozen=True)
class Repository:
    """What is recorded about one checkout, and its uncommitted diff."""

    record: dict[str, Any]
    diff: bytes = b""


def code_repository(folder: Path) -> Repository | None:
    """The checkout that the package in `folder` belongs to; None for an installed package, even if its virtual
    environment lies inside somebody's repository.
    """
    if not _git(folder, time.monotonic() + _SECONDS, "ls-files", "--error-unmatch", "__init__.py").ok:
        return None
    return repository(folder)


def repository(folder: Path) -> Repository | None:
    """The checkout around `folder`; None if there is none."""
    deadline = time.monotonic() + _SECONDS
    top = _git(folder, deadline, "rev-parse", "--show-toplevel")
    if not top.ok:
        return None
    root = Path(top.text)
    head = _git(root, deadline, "rev-parse", "HEAD")
    status = _git(root, deadline, "status", "--porcelain")
    diff = _git(root, deadline, "diff", "--no-color", "--no-ext-diff", "--no-textconv", "--binary", "HEAD")
    changes = status.text.splitlines()
    failed = [answer.why for answer in (head, status, diff) if not answer.ok]
    record: dict[str, Any] = {
        "root": str(root),
        "commit": head.text if head.ok else None,
        "dirty": bool(changes) if status.ok else None,
        "untracked": [line[3:] for line in changes if line.startswith("??")][:100],
    }
    if failed:
        record["incomplete"] = failed
    return Repository(record, diff.output if diff.ok else b"")


@dataclass(frozen=True)
class _Answer:
    ok: bool
    output: bytes
    why: str = ""

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace").rstrip("\n")


def _git(folder: Path, deadline: float, *arguments: str) -> _Answer:
    """One query of git; of its output at most a byte more than DIFF_LIMIT, so that truncation is noticed."""
    # Read only: no refresh of the index, which would need a lock, and no helper from the repository's config.
    command = ["git", "-C", str(folder), "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments]
    try:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            timer = threading.Timer(max(deadline - time.monotonic(), 0.1), process.kill)
            timer.start()
            output = process.stdout.read(DIFF_LIMIT + 1)
            cut = len(output) > DIFF_LIMIT
            if cut:
                process.kill()
            process.wait()
            timer.cancel()
    except OSError as error:
        return _Answer(False, b"", f"git cannot be run: {error.strerror}")
    ok = cut or process.returncode == 0
    return _Answer(ok, output, "" if ok else f"git {arguments[0]} ended with {process.returncode}")
