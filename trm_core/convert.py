"""A checkpoint of the public TRM or HRM code -> a run directory, to evaluate, query, export or train further."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trm_core.config import LoadedConfig
from trm_core.distributed.place import Place
from trm_core.errors import ConfigError, ExitCode
from trm_core.prepare import RunHooks, prepare
from trm_core.runs import begin
from trm_core.training import run_dir
from trm_core.training.public_weights import read_public, settings_of_public
from trm_core.training.run_path import choose_run_path
from trm_core.training.stopping import StopFlag

NOT_IN_WEIGHTS = ("H_cycles", "L_cycles", "max_steps")


def settings_of(checkpoint: Path) -> dict[str, Any]:
    """The `arch` settings that a checkpoint file implies. Raises CheckpointError."""
    return settings_of_public(checkpoint, read_public(checkpoint))


def convert(loaded: LoadedConfig, hooks: RunHooks) -> Path:
    """Write a run at step 0 from a config whose `training.init_from` is a checkpoint. Raises CheckpointError,
    ConfigError, DataError, UsageError or ResourceError.
    """
    unknown = [name for name in NOT_IN_WEIGHTS if loaded.origins[f"arch.{name}"] == "default"]
    if unknown:
        raise ConfigError(
            f"the weights do not determine {', '.join(f'arch.{name}' for name in unknown)}, and there is no "
            f"all_config.yaml "
            "beside them",
            hint="name the values used in training; TRM: arch.H_cycles=3 arch.L_cycles=6 (mazes, ARC: 4) "
            "arch.max_steps=16; HRM: 2, 2, 16",
        )
    path, _ = choose_run_path(loaded.config, None)
    prepared = prepare(loaded.config, hooks)
    path.mkdir(parents=True, exist_ok=True)
    with run_dir.locked(path):
        run = begin(path, prepared, False, StopFlag(), hooks, Place())
        for note in run.trainer.notes:
            hooks.log(note)
        assert run.trainer.keeper is not None
        run.trainer.keeper.save(hooks.log)
        run_dir.write_status(path, "stopped", 0, run.total_steps, int(ExitCode.STOPPED_EARLY))
        run.trainer.state.stream.close()
    return path
