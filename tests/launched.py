"""Find the processes that `trm train --nproc N` starts."""

from __future__ import annotations

from pathlib import Path


def find_worker(launcher: int, rank: int) -> int | None:
    """The process id of a rank that a launcher started; None if there is none yet."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            ours = parent == launcher and f"RANK={rank}".encode() in (entry / "environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if ours:
            return int(entry.name)
    return None
