"""`trm diagnose --config --probe`: a few real steps of a config, for checks to look at. Nothing is written."""

from __future__ import annotations

from trm_core.config import LoadedConfig
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.puzzle_facts import facts_of
from trm_core.diagnose.series import from_lines
from trm_core.diagnose.watch import Kept
from trm_core.prepare import RunHooks, prepare
from trm_core.training.stopping import StopFlag
from trm_core.training.trainer import Hooks, Trainer

STEPS = 40


def probed(loaded: LoadedConfig, hooks: RunHooks) -> Evidence:
    """Evidence from the first STEPS steps of the run that this config asks for. Raises what such a run raises."""
    prepared = prepare(loaded.config, hooks)
    config = prepared.config
    first = config.training.model_copy(update={"stop_at_step": STEPS, "log_interval": 1})
    trainer = Trainer(config.model_copy(update={"training": first}), prepared.features, prepared.files, prepared.device)
    kept = Kept()
    try:
        trainer.run(kept, StopFlag(), Hooks(on_step=hooks.on_step, log=hooks.log))  # Ctrl-C ends it: nothing to save
    finally:
        trainer.state.stream.close()
    facts = facts_of(prepared.files[0][0].path)
    return Evidence(config, from_lines(kept.lines), facts, notes=list(prepared.notes))
