"""`trm checkpoints RUN`: which checkpoints a run has, and whether each is intact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trm_cli.config_options import JsonOption


def command(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Run directory; default: the newest under runs/.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the checkpoints of a run, newest first, and verify every byte of them against their manifests.

    Ends with code 1 if one is damaged, 4 if there are none.
    """
    from datetime import datetime

    from trm_cli.console import print_json, table
    from trm_core.errors import CheckFailed, CheckpointError
    from trm_core.training.checkpoint_verify import checkpoint_facts
    from trm_core.training.run_dir import newest_run, require_run

    path = newest_run() if run is None else run
    require_run(path)
    found = checkpoint_facts(path)
    if not found:
        raise CheckpointError(f"{path} has no checkpoint", hint="train longer than training.checkpoint_interval")
    if json:
        names = ("step", "bytes", "written", "best", "fault")
        entries = [{"path": str(one.path), **{name: getattr(one, name) for name in names}} for one in found]
        print_json({"run": str(path), "checkpoints": entries})
    else:
        table(
            str(path),
            ["checkpoint", "step", "MB", "written", "", "state"],
            [
                (
                    one.path.name,
                    one.step,
                    f"{one.bytes / 1e6:.1f}",
                    datetime.fromtimestamp(one.written).strftime("%Y-%m-%d %H:%M:%S"),
                    "best" if one.best else None,
                    "verifies" if one.fault is None else "damaged",
                )
                for one in found
            ],
        )
    faults = [one.fault for one in found if one.fault is not None]
    if faults:
        raise CheckFailed("\n".join(faults), hint="--resume goes back to the newest checkpoint that verifies")
