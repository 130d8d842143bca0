"""`trm train`: build or open the data, train, evaluate what was saved, and print the result and the run directory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trm_cli.config_options import (
    ConfigOption,
    JsonOption,
    OverridesArgument,
    PrintConfigOption,
    load_from_cli,
    print_config,
)
from trm_cli.console import log, out, print_json, table
from trm_cli.processes import start_processes
from trm_cli.progress import progress
from trm_cli.score_table import print_scores

if TYPE_CHECKING:
    from trm_core.config import LoadedConfig
    from trm_core.prepare import DryRun
    from trm_core.runs import RunResult
    from trm_core.training.estimate import MemoryEstimate
    from trm_core.training.stopping import StopFlag


def command(
    overrides: OverridesArgument = None,
    config: ConfigOption = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|auto",
            help="Resume a run; 'auto': resume if training.run_dir holds a checkpoint, else start.",
        ),
    ] = None,
    nproc: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Train with N processes on this machine, one for each GPU."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Stop before the first step, and print shapes, parameters, memory and features."
        ),
    ] = False,
    print_config_: PrintConfigOption = False,
    json: JsonOption = False,
) -> None:
    """Train a model and evaluate it.

    Example: trm train --config configs/quickstart.yaml training.total_steps=500
    """
    loaded = load(config, overrides, resume)
    if print_config_:
        print_config(loaded, json)
        return

    if dry_run:
        from trm_core.prepare import RunHooks
        from trm_core.prepare import dry_run as run_dry

        show_dry_run(run_dry(loaded, RunHooks(log=log), nproc or 1, resume), json)
        return
    from trm_core.training.stopping import stop_on_signals

    with stop_on_signals() as stop:  # before the imports below, which take some seconds
        if nproc is not None:
            stop.check("stopped before training began", hint="run the same command again")
            train_in_processes(nproc, loaded, resume, json)
            return
        result = train_here(loaded, resume, stop)
    if result is None:
        return  # another process reports it
    if json:
        print_json(result.evaluation)
        return
    print_scores(result.evaluation)
    out(f"run: {result.path}")


def train_here(loaded: LoadedConfig, resume: str | None, stop: StopFlag) -> RunResult | None:
    """Train in this process, with progress on stderr. None if another process reports the result."""
    from trm_core import runs

    with progress("building", total=None) as bar:

        def on_build(stage: str, done: int, total: int) -> None:
            bar.update(done, total=total, label=stage)

        def on_step(step: int, values: dict[str, float]) -> None:
            shown = {
                name: values[key]
                for name, key in (
                    ("loss", "train/loss"),
                    ("accuracy", "train/accuracy"),
                    ("expand%", "train/action_expand_pct"),
                )
                if key in values
            }
            bar.update(step, total=loaded.config.training.total_steps, label="training", **shown)

        hooks = runs.RunHooks(log=log, on_step=on_step, on_build=on_build)
        return runs.train_run(loaded, resume, hooks, stop)


def train_in_processes(nproc: int, loaded: LoadedConfig, resume: str | None, json: bool) -> None:
    """Start this command in N processes of one run, and exit with the run's exit code."""
    from trm_core.training.launch import without_nproc
    from trm_core.training.run_path import choose_run_path

    path, _ = choose_run_path(loaded.config, resume)
    arguments = without_nproc(sys.argv[1:])
    if resume in (None, "auto"):
        arguments.append(f"training.run_dir={path}")  # the same for all, even if the config does not set it
    start_processes(nproc, json, arguments=arguments, run=path, hint=f"continue with: trm train --resume {path}")


def load(config: Path | None, overrides: list[str] | None, resume: str | None) -> LoadedConfig:
    """The config of this call; if a run is resumed without --config, that of the run."""
    if config is None and resume not in (None, "auto"):
        from trm_core.config.load import load_recorded
        from trm_core.training.run_dir import CONFIG, require_run

        run = require_run(Path(str(resume)))
        return load_recorded(run / CONFIG, [*(overrides or []), f"training.run_dir={run}"])
    return load_from_cli(config, overrides)


def show_dry_run(dry: DryRun, json: bool) -> None:
    """Print what the run would do; how much memory it takes comes last, as it takes longest to find out."""
    prepared, shape = dry.prepared, dry.prepared.features.shape
    inputs = {
        "capsules k": shape.num_capsules,
        "width D": shape.dim,
        "children m": shape.num_children,
        "checksums R": shape.checksum_dim,
        "classes V": shape.num_classes,
        "answers per sample": shape.answers,
    }
    if shape.tokens:
        inputs = {
            "tokens S": shape.num_capsules,
            "vocabulary V": shape.vocab_size,
            "puzzle identifiers": shape.num_puzzles,
        }
    shapes = {
        **inputs,
        "train rows": sum(file.rows["train"] for file, _ in prepared.files),
        "evaluated split": f"{prepared.evaluation.split} ({prepared.split_reason})",
        "parameters": dry.parameters,
        "steps per epoch": round(dry.steps_per_epoch, 1),
        "device": str(prepared.device),
    }
    if json:
        status = [{"feature": f.name, "on": f.on, "reason": f.reason} for f in prepared.features.status]
        print_json({"shapes": shapes, "memory_mb": megabytes(dry.memory()), "features": status})
        return
    if prepared.config.data.draw == "halted":
        shapes["steps per epoch"] = f"at least {shapes['steps per epoch']}: rows that keep thinking take no new sample"
    table("shapes", ["what", "value"], list(shapes.items()))
    table(
        "features",
        ["feature", "on", "why"],
        [(f.name, "on" if f.on else "off", f.reason) for f in prepared.features.status],
    )
    log("estimating memory")
    table("memory estimate, MB", ["owner", "MB"], list(megabytes(dry.memory()).items()))


def megabytes(memory: MemoryEstimate) -> dict[str, float]:
    """The estimate by owner, and its total."""
    owners = {name: round(getattr(memory, name) / 1e6, 1) for name in memory.__dataclass_fields__}
    return {**owners, "total": round(memory.total / 1e6, 1)}
