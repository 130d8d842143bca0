"""A training step of this checkout against one of another: what a change costs or saves.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.versions /tmp/before --config configs/quickstart.yaml [--rounds 60] [--overrides KEY=VALUE ...]

Each checkout trains in a separate process, and both take a few steps in turn, so that other load on the machine affects
them alike. The processor time of a step (one thread) is compared, new over old, with the 95 % interval of the median
over rounds. The data of the config are built or found as in training.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

STEPS = 5  # per turn
WARM_STEPS = 20
HERE = Path(__file__).parent.parent


def serve(config: str, overrides: list[str]) -> None:
    """Serve one checkout: read numbers of steps from stdin, and answer each with the processor seconds they took."""
    import torch

    from trm_core.config import load_config
    from trm_core.prepare import RunHooks, prepare
    from trm_core.profiling.steps import Stepper

    torch.set_num_threads(1)
    loaded = load_config(config, ["training.device=cpu", "training.threads=1", *overrides])
    prepared = prepare(loaded.config, RunHooks())
    with closing(Stepper(prepared.config, prepared.features, prepared.files, prepared.device)) as stepper:
        stepper.warm()
        stepper.take(WARM_STEPS)
        print("ready", flush=True)
        for line in sys.stdin:
            began = time.process_time()
            stepper.take(int(line))
            print(time.process_time() - began, flush=True)


@contextmanager
def steps_of(checkout: Path, config: Path, overrides: list[str]) -> Iterator[Callable[[], float]]:
    """A function that takes one turn of steps with the code of a checkout and returns the seconds per step."""
    path = os.pathsep.join([str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, __file__, "--serve", str(config), *overrides]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        questions, answers = process.stdin, process.stdout
        assert questions is not None
        assert answers is not None
        if answers.readline() != "ready\n":
            raise SystemExit(f"{checkout} cannot train {config}: see above")

        def turn() -> float:
            questions.write(f"{STEPS}\n")
            questions.flush()
            return float(answers.readline()) / STEPS

        yield turn
        questions.close()


def commit_of(checkout: Path) -> str:
    """As git names it, with "-dirty" where files differ from it; nothing where git does not know it."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="another checkout of this repository")
    parser.add_argument("--config", type=Path, default=HERE / "configs" / "quickstart.yaml")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--overrides", nargs="*", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()

    import numpy as np

    from benchmarks.record import describe_machine, publish
    from benchmarks.timing import ratio

    seconds: dict[str, list[float]] = {"before": [], "after": []}
    checkouts = {"before": asked.before.resolve(), "after": HERE}
    with ExitStack() as stack:
        turns = {
            name: stack.enter_context(steps_of(path, asked.config.resolve(), asked.overrides))
            for name, path in checkouts.items()
        }
        for number in range(asked.rounds):
            for name in sorted(turns, reverse=number % 2 == 1):  # alternate, as the second finds a warmer cache
                seconds[name].append(turns[name]())
    before, after = (np.array(seconds[name]) for name in ("before", "after"))
    record = {
        "benchmark": "versions",
        "machine": describe_machine(1),
        "commits": {name: commit_of(path) for name, path in checkouts.items()},
        "config": asked.config.name,
        "overrides": asked.overrides,
        "milliseconds of processor time, median": {
            name: round(1e3 * float(np.median(values)), 2) for name, values in seconds.items()
        },
        "after / before": ratio(after, before),
    }
    publish(record, asked.out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3:])
    else:
        main()
