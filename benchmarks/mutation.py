"""Mutation testing: the share of a module's mutants that its tests kill, that is, notice.

    python -m benchmarks.mutation --out benchmarks/results/mutation.json [--mutants 40] [--only trm_core/dqn/actions.py]

A mutant is a module with one small change (`mutants.py`); `--mutants` of them are drawn per module. Each runs in a copy
of the package. Mutants on which no test in `TESTS` fails are listed; some of these change nothing observable. Every run
is a fork of one process that has already loaded PyTorch, which saves its start-up time.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from benchmarks.mutants import changes, differing
from benchmarks.record import describe_machine, publish

ROOT = Path(__file__).parent.parent
CURIOSITY, REGROUP = "tests/dqn/test_curiosity.py", "tests/training/test_regroup.py"
ACTIONS, LEARNING = "tests/dqn/test_actions.py", "tests/dqn/test_rewards_and_learning.py"
PRIORITIES, REPLAY = "tests/dqn/test_priorities.py", "tests/dqn/test_replay.py"
EPISODES, EMULATED = "tests/training/test_episodes.py", "tests/training/test_two_devices.py"
CHECKPOINT, SAVED = "tests/training/test_checkpoint.py", "tests/training/test_saved_state.py"
TESTS = {  # the fastest first
    "trm_core/dqn/actions.py": (ACTIONS, LEARNING),
    "trm_core/dqn/rewards.py": (LEARNING,),
    "trm_core/dqn/selectors.py": (ACTIONS,),
    "trm_core/dqn/priorities.py": (PRIORITIES,),
    "trm_core/dqn/replay.py": (REPLAY,),
    "trm_core/dqn/replay_index.py": (REPLAY,),
    "trm_core/dqn/learner.py": (LEARNING,),
    "trm_core/dqn/schedules.py": (CURIOSITY, LEARNING),
    "trm_core/training/episodes.py": (EPISODES, EMULATED),
    "trm_core/training/checkpoint.py": (CHECKPOINT, REGROUP),
    "trm_core/training/checkpoint_folders.py": (CHECKPOINT, REGROUP),
    "trm_core/training/checkpoint_verify.py": (CHECKPOINT, REGROUP),
    "trm_core/training/saved_state.py": (SAVED,),
}
PRELOADED = ("h5py", "pydantic", "safetensors.torch", "sympy", "typer")  # further imports of the tests
MEMORY = 16 << 30  # bytes of address space: a mutant might otherwise take all memory


def run_tests(package: Path, tests: tuple[str, ...]) -> None:
    """Run the tests and end this process, a fork, with exit code 0 if all pass."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.dont_write_bytecode = True  # it could be stale: two mutants may have the same size and modification time
    os.environ |= {"PYTHONPATH": f"{package}:{ROOT}", "HYPOTHESIS_STORAGE_DIRECTORY": str(package / "hypothesis")}
    os.chdir(ROOT)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    hypothesis.settings.register_profile("once", phases=[hypothesis.Phase.generate], derandomize=True)
    hypothesis.settings.load_profile("once")
    places = (f"--basetemp={package / 'folders'}", "-o", f"pythonpath={package}")
    code = pytest.main(["-n0", "-x", "-p", "no:cacheprovider", *places, *tests])
    assert str(sys.modules["trm_core"].__file__).startswith(str(package))
    os._exit(int(code))


def passes(package: Path, tests: tuple[str, ...], timeout: float) -> bool:
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=(package, tests))
    process.start()
    process.join(timeout)
    process.kill()
    process.join()
    return process.exitcode == 0


def judge(module: str, count: int, seed: int, package: Path) -> dict[str, Any]:
    """How many of `count` mutants the tests kill, and which ones survive."""
    tree, place, kept = ast.parse((ROOT / module).read_text()), package / module, (ROOT / module).read_text()
    start, lines = time.monotonic(), ast.unparse(tree).split("\n")
    assert passes(package, TESTS[module], 600), f"{module}: the tests fail without a mutant"
    timeout = 30 + 3 * (time.monotonic() - start)
    possible, survivors = list(changes(tree)), []
    drawn = random.Random(seed).sample(possible, min(count, len(possible)))
    for node, name, value in sorted(drawn, key=lambda change: getattr(change[0], "lineno", 0)):
        before = getattr(node, name)
        setattr(node, name, value)
        text = ast.unparse(ast.fix_missing_locations(tree))
        setattr(node, name, before)
        place.write_text(text)
        if passes(package, TESTS[module], timeout):
            line = getattr(node, "lineno", 0)
            survivors.append(f"{module}:{line}  {differing(lines, text.split(chr(10)))}")
            print(survivors[-1], file=sys.stderr, flush=True)
    place.write_text(kept)
    return {
        "possible": len(possible),
        "drawn": len(drawn),
        "killed": len(drawn) - len(survivors),
        "survivors": survivors,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--mutants", type=int, default=40, help="per module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(TESTS), nargs="+", default=list(TESTS))
    arguments = parser.parse_args()
    for name in PRELOADED:
        importlib.import_module(name)
    modules = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in ("trm_core", "trm_cli"):
            shutil.copytree(ROOT / part, Path(folder) / part)
        for module in arguments.only:
            start = time.monotonic()
            modules[module] = judge(module, arguments.mutants, arguments.seed, Path(folder))
            counts = f"{modules[module]['killed']}/{modules[module]['drawn']}"
            print(f"{module}  {counts} killed  {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    from trm_core.evaluation.intervals import accuracy_interval  # only here, because the forks import their own copy

    for found in modules.values():
        low, high = accuracy_interval(torch.arange(found["drawn"]) < found["killed"])
        found["share"] = {"killed": found["killed"] / found["drawn"], "low": round(low, 3), "high": round(high, 3)}
    setting = {"mutants": arguments.mutants, "seed": arguments.seed}
    publish({"setting": setting, "machine": describe_machine(threads=1), "modules": modules}, arguments.out)


if __name__ == "__main__":
    main()
