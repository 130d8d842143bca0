"""One run of the zoo: plant the fault and train as `trm train` does.

python -m tests.faults.plant FAULT SEVERITY BASE SEED RUN       (FAULT `none`: BASE is the name of a healthy run)

A capsule file that was changed lies beside the run, as RUN.h5; puzzles lie in RUN.puzzles. Ends with the exit code of
`trm train`.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.faults import (
    code_faults,
    config_faults,
    data_faults,
    eighth_faults,
    fifth_faults,
    folder_faults,
    fourth_faults,
    half_faults,
    more_faults,
    other_faults,
    place_faults,
    puzzle_faults,
    seventh_faults,
    sixth_faults,
    third_faults,
)
from tests.faults.bases import BASES
from tests.faults.capsules import write
from tests.faults.healthy import HEALTHY
from tests.faults.plan import SEVERITIES, Plan, begin
from tests.faults.puzzles import Puzzles, write_folder
from trm_core.training.launch import launch

FAULTS = {
    fault.name: fault
    for part in (
        data_faults,
        config_faults,
        code_faults,
        folder_faults,
        more_faults,
        other_faults,
        third_faults,
        half_faults,
        place_faults,
        fourth_faults,
        fifth_faults,
        seventh_faults,
        eighth_faults,
    )
    for fault in part.FAULTS
}
NONE = "none"
PUZZLE_BASES = sixth_faults.BASES
PUZZLE_FAULTS = {**puzzle_faults.FAULTS, **sixth_faults.FAULTS}


def planned(fault: str, severity: str, base: str, seed: int) -> Plan:
    """The plan of a run with its fault planted."""
    of_puzzles = base in PUZZLE_BASES
    if fault == NONE:
        return begin({**HEALTHY, **PUZZLE_BASES}[base], 0, seed)
    plan = begin({**BASES, **PUZZLE_BASES}[base], SEVERITIES.index(severity), seed)
    (PUZZLE_FAULTS if of_puzzles else FAULTS)[fault].plant(plan)
    return plan


def overrides(settings: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def run(plan: Plan, path: Path, arguments: list[str]) -> int:
    """Train the planned run. `arguments`: those of this process, to pass to the processes that it starts."""
    beside = path.with_name(path.name + (".puzzles" if isinstance(plan.capsules, Puzzles) else ".h5"))
    ours = "RANK" not in os.environ  # otherwise one of several processes, whose parent has written the data
    if plan.capsules is not None:
        if ours:
            beside.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(plan.capsules, Puzzles):
                write_folder(plan.capsules, beside)
            else:
                write(plan.capsules, beside)
        plan.settings.pop("data.source", None)
        plan.settings["data.path"] = str(beside)
    plan.settings["training.run_dir"] = str(path)
    if ours:
        for prepare in plan.before:
            prepare(path)
    if plan.processes > 1 and ours:
        code = launch(plan.processes, "tests.faults.plant", arguments, path).code
    else:
        code = train(plan)
    if ours:
        for damage in plan.after:
            damage(path)
    return code


def train(plan: Plan) -> int:
    """Run the real command line with the patches active."""
    from trm_cli.main import main

    sys.argv = ["trm", "train", *overrides(plan.settings)]
    with ExitStack() as stack:
        for patched in plan.patches:
            stack.enter_context(patched)
        try:
            main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 0
    return 0


def main(arguments: list[str]) -> int:
    """Do what the command line of this process says; its exit code."""
    name, severity, base, seed, path = arguments
    return run(planned(name, severity, base, int(seed)), Path(path).resolve(), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
