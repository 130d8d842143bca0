"""How long `trm` takes to start, beyond what Python and torch themselves take.

    python -m benchmarks.start --out benchmarks/results/start.json [--run RUN] [--rounds 20] [--heavy-rounds 7]
        [--lines 100000]

Whole processes alternate, started as by a shell: `python -c pass`, `trm --help`, and `trm diagnose` of RUN and of a
copy of it with many logged steps, in one group; `import torch` and `trm train --dry-run` of the quickstart in another,
which takes longer. Differences of neighbours in seconds with 95 % intervals, and the same in processor time, which is
less affected by other processes on the machine. RUN: a finished run; without one, a tiny quickstart is trained first.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import describe_machine, publish
from benchmarks.runs import ROOT, train
from benchmarks.timing import alternate, difference
from trm_core.training.run_dir import METRICS

QUICKSTART = ROOT / "configs/quickstart.yaml"
TINY = ["total_steps=60", "predictor_steps=40", "lr_warmup_steps=5"]
TRM = "import sys; from trm_cli.main import main; main()"  # what the installed script does
PASS, TORCH, HELP, DIAGNOSE, DRY_RUN = "python -c pass", "import torch", "trm --help", "trm diagnose", "trm --dry-run"
DIAGNOSE_LONG = "trm diagnose, long log"


def lengthened(run: Path, folder: Path, lines: int) -> Path:
    """A copy of the run that has logged `lines` steps: its own lines again and again."""
    shutil.copytree(run, folder)
    logged = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    with (folder / METRICS).open("w") as file:
        for step, record in zip(range(1, lines + 1), cycle(logged), strict=False):
            file.write(json.dumps({**record, "step": step}) + "\n")
    return folder


def processes(run: Path, long: Path) -> dict[str, list[str]]:
    """Arguments of `python`, by name."""
    return {
        PASS: ["-c", "pass"],
        HELP: ["-c", TRM, "--help"],
        DIAGNOSE: ["-c", TRM, "diagnose", str(run)],
        DIAGNOSE_LONG: ["-c", TRM, "diagnose", str(long)],
        TORCH: ["-c", "import torch"],
        DRY_RUN: ["-c", TRM, "train", "--config", str(QUICKSTART), "--dry-run"],
    }


def starter(arguments: Sequence[str], spent: list[float]) -> Callable[[], None]:
    """A function that runs the process to its end and appends its processor seconds to `spent`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # the first round compiles, as an installation does

    def start() -> None:
        before = children_seconds()
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode not in (0, 1):  # 1: a check of `diagnose` failed, as it may for a tiny run
            raise SystemExit(f"python {' '.join(arguments)}: {done.stderr.decode()[-2000:]}")
        spent.append(children_seconds() - before)

    return start


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(arguments: dict[str, list[str]], rounds: int) -> dict[str, Any]:
    """Compare all with the first, in wall-clock seconds and in processor seconds."""
    spent: dict[str, list[float]] = {name: [] for name in arguments}
    seconds = alternate({name: starter(words, spent[name]) for name, words in arguments.items()}, rounds)
    processor = {name: np.array(values[-rounds:]) for name, values in spent.items()}
    first, *others = arguments
    record: dict[str, Any] = {}
    for other in others:
        record[f"{other} - {first}"] = {
            "seconds": difference(seconds[other], seconds[first]),
            "processor seconds": difference(processor[other], processor[first]),
        }
    medians = {name: round(float(np.median(values)), 3) for name, values in seconds.items()}
    return {"seconds of a process": medians, **record}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", type=Path, help="a finished run for `trm diagnose`")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--heavy-rounds", type=int, default=7, help="of the processes that import torch")
    parser.add_argument("--lines", type=int, default=100_000, help="logged steps of the copy")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run or Path(folder) / "run"
        if arguments.run is None:
            train(QUICKSTART, run, [f"training.{setting}" for setting in TINY])
        words = processes(run, lengthened(run, Path(folder) / "long", arguments.lines))
        light = measure({name: words[name] for name in (PASS, HELP, DIAGNOSE, DIAGNOSE_LONG)}, arguments.rounds)
        heavy = measure({name: words[name] for name in (TORCH, DRY_RUN)}, arguments.heavy_rounds)
    setting = {"rounds": arguments.rounds, "heavy rounds": arguments.heavy_rounds, "lines": arguments.lines}
    publish({"setting": setting, "machine": describe_machine(threads=1), "light": light, "heavy": heavy}, arguments.out)


if __name__ == "__main__":
    main()
