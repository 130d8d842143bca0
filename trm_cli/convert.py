"""`trm convert CHECKPOINT --data FOLDER --out RUN`: turn a checkpoint of the public TRM or HRM code into a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trm_cli.config_options import ConfigOption, JsonOption, OverridesArgument, load_from_cli
from trm_cli.console import log, out, print_json


def command(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="The file that the public code saved, such as step_50000.")
    ],
    overrides: OverridesArgument = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FOLDER", help="The puzzles it was trained on; becomes data.path.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="The run directory to write; default: under runs/.")
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Turn a checkpoint of the public TRM or HRM code into a run.

    The network's sizes are taken from the weights, cycles and steps from all_config.yaml beside them. Without that
    file, name them: trm convert step_50000 arch.H_cycles=3 arch.L_cycles=6 arch.max_steps=16 --data data/sudoku
    """
    from trm_core.convert import convert, settings_of
    from trm_core.prepare import RunHooks

    found = settings_of(checkpoint)
    log(f"{checkpoint}: " + ", ".join(f"{name}={value}" for name, value in found.items()))
    given = [f"arch.{name}={value}" for name, value in found.items()]
    given += ["dqn.enabled=false", f"training.init_from={checkpoint.absolute()}"]
    given += [] if data is None else [f"data.path={data}"]
    given += [] if run is None else [f"training.run_dir={run}"]
    path = convert(load_from_cli(config, [*given, *(overrides or [])]), RunHooks(log=log))
    if json:
        print_json({"run": str(path), "arch": found})
    else:
        out(f"run: {path}")
