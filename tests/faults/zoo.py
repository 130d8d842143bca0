"""Make the zoo: every fault at every severity on both base runs (faults of puzzles on theirs), and all healthy runs.

python -m tests.faults.zoo OUT [--only NAME ...] [--seeds 0 1] [--jobs 2]

Existing runs are kept. OUT/index.json lists {run, fault (null: healthy), severity, base, seed, expected, exit_code,
seconds}.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.faults.bases import BASES
from tests.faults.healthy import HEALTHY
from tests.faults.plan import SEVERITIES
from tests.faults.plant import FAULTS, NONE, PUZZLE_BASES, PUZZLE_FAULTS
from tests.faults.sixth_faults import FAULTS as SIXTH

ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 120
ALL = {**FAULTS, **PUZZLE_FAULTS}


def bases_of(fault: str) -> tuple[str, ...]:
    """The base runs in which a fault is planted."""
    if fault in FAULTS:
        return tuple(BASES)
    return tuple(PUZZLE_BASES) if fault in SIXTH else tuple(PUZZLE_BASES)[:1]


@dataclass(frozen=True)
class Entry:
    """One run to make. `fault` None: a healthy one."""

    fault: str | None
    severity: str | None
    base: str
    seed: int
    expected: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        return "/".join((self.fault or "healthy", *filter(None, [self.severity]), f"{self.base}-{self.seed}"))


def entries(only: list[str], seeds: list[int]) -> Iterator[Entry]:
    """`only`: names of faults, or `healthy`; all if empty."""
    for seed in seeds:
        if not only or "healthy" in only:
            for base in (*HEALTHY, *PUZZLE_BASES):
                yield Entry(None, None, base, seed)
        # Severe ones first, because these must be found.
        for severity in reversed(SEVERITIES):
            for fault in ALL.values():
                if not only or fault.name in only:
                    for base in bases_of(fault.name):
                        yield Entry(fault.name, severity, base, seed, fault.expected)


Starter = Callable[[list[str], dict[str, str]], tuple[int, str]]


def started(arguments: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """`tests.faults.plant` in a process of its own: its exit code, and what it said."""
    command = [sys.executable, "-m", "tests.faults.plant", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    return done.returncode, done.stderr


def make(fault: str | None, severity: str | None, base: str, seed: int, out: Path, start: Starter = started) -> Path:
    """The run directory; made now if it is not there. A fault may end the run with an error: that is no failure."""
    run = out / Entry(fault, severity, base, seed).folder
    note = run.with_name(run.name + ".json")
    if note.is_file():
        return run
    shutil.rmtree(run, ignore_errors=True)
    run.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRM_CACHE": os.environ.get("TRM_CACHE", str(out / "cache"))}
    code, said = start([fault or NONE, severity or SEVERITIES[0], base, str(seed), str(run.resolve())], environment)
    if not (run / "config.yaml").is_file():
        raise RuntimeError(f"{run} was not made (exit code {code}):\n{said}")
    note.write_text(json.dumps({"exit_code": code, "seconds": round(time.monotonic() - began, 1)}))
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", default=[], choices=["healthy", *ALL], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)

    def made(entry: Entry) -> None:
        run = make(entry.fault, entry.severity, entry.base, entry.seed, asked.out)
        print(entry.folder, run.with_name(run.name + ".json").read_text(), flush=True)

    with ThreadPoolExecutor(asked.jobs) as pool:
        pending = [pool.submit(made, entry) for entry in entries(asked.only, asked.seeds)]
        for future in pending:
            future.result()
            write_index(asked.out)


def write_index(out: Path) -> None:
    """Lists every run that is there, of this call or of earlier ones."""
    listed: list[dict[str, Any]] = []
    for note in sorted(out.rglob("*.json")):
        parts = note.relative_to(out).with_suffix("").parts
        known = (parts[0] in ALL and len(parts) == 3) or (parts[0] == "healthy" and len(parts) == 2)
        if not known or not note.with_suffix("").is_dir():
            continue
        base, _, seed = parts[-1].rpartition("-")
        if parts[0] == "healthy":
            entry = Entry(None, None, base, int(seed))
        else:
            entry = Entry(parts[0], parts[1], base, int(seed), ALL[parts[0]].expected)
        listed.append({"run": str(note.with_suffix("").resolve()), **asdict(entry), **json.loads(note.read_text())})
    temporary = out / ".index.json"
    temporary.write_text(json.dumps(listed, indent=1))
    temporary.rename(out / "index.json")


if __name__ == "__main__":
    main()
