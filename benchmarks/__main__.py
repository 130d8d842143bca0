"""Run the timing benchmarks one after another and print one table: what, against what, ratio, target, verdict.

    python -m benchmarks [--only NAME ...] [--public FOLDER] [--messages FILE] [--run RUN] [--quick] [--out FOLDER]

Each benchmark is a separate process in which the contenders alternate. Its record is written to FOLDER/NAME.json
(default: benchmarks/results; with --quick and no --out nothing is kept) with a description of the machine. The table
names what could not run because something it needs is missing. How well models learn is measured by other benchmarks,
which take hours: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.record import describe_machine
from benchmarks.runs import ROOT
from benchmarks.table import JOBS, Given, Job, table

RESULTS = Path(__file__).parent / "results"
THREADS = 1


def run(job: Job, given: Given, quick: bool, folder: Path) -> dict[str, Any]:
    """Run one benchmark; its record, with the state of the machine when it began. Raises RuntimeError with the last
    line of its stderr.
    """
    out = folder / f"{job.name}.json"
    machine = describe_machine(THREADS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(THREADS)}
    command = [sys.executable, *job.command(given, quick), "--out", str(out)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    record: dict[str, Any] = {**json.loads(out.read_text()), "machine": machine, "command": job.command(given, quick)}
    out.write_text(json.dumps(record, indent=2) + "\n")
    return record


def run_all(jobs: list[Job], given: Given, quick: bool, folder: Path) -> str:
    """Run the jobs; the table of their results."""
    records: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    for job in jobs:
        why = job.needs(given)
        if why is not None:
            missing[job.name] = why
            continue
        print(f"{job.name} ...", file=sys.stderr, flush=True)
        try:
            records[job.name] = run(job, given, quick, folder)
        except RuntimeError as error:
            missing[job.name] = str(error)
    return table(records, missing, judged=not quick)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[job.name for job in JOBS], metavar="NAME", help="which ones")
    parser.add_argument("--public", type=Path, help="a clone of the public TRM code")
    parser.add_argument("--messages", type=Path, help="label<TAB>text, for the builder")
    parser.add_argument("--run", type=Path, help="a run with adaptive H-cycles, for adaptive_inference")
    parser.add_argument("--quick", action="store_true", help="see that they run; the figures say little")
    parser.add_argument("--out", type=Path, help="folder of the records")
    arguments = parser.parse_args()
    given = Given(*(path and path.resolve() for path in (arguments.public, arguments.messages, arguments.run)))
    jobs = [job for job in JOBS if arguments.only is None or job.name in arguments.only]
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or (Path(temporary) if arguments.quick else RESULTS)
        folder.mkdir(parents=True, exist_ok=True)
        print(run_all(jobs, given, arguments.quick, folder.resolve()))


if __name__ == "__main__":
    main()
