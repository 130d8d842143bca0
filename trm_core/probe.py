"""`trm diagnose --config --probe`: a few real steps of a config, for checks to look at. Nothing is written."""

from __future__ import annotations

from collections.abc import Mapping

from trm_core.config import LoadedConfig
from trm_core.diagnose.data_facts import DataFacts
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.series import from_lines
from trm_core.prepare import RunHooks, prepare
from trm_core.training.stopping import stop_on_signals
from trm_core.training.trainer import Hooks, Trainer

STEPS = 40


class Kept:
    """A logger that keeps its lines: see `trm_core.training.loggers.MetricsLogger`."""

    def __init__(self) -> None:
        self.lines: list[dict[str, object]] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.lines.append({"step": step, **values})

    def rewind(self, step: int) -> None:
        self.lines = [line for line in self.lines if isinstance(line["step"], int) and line["step"] <= step]

    def close(self) -> None:
        pass


def probed(loaded: LoadedConfig, hooks: RunHooks) -> Evidence:
    """Evidence from the first STEPS steps of the run that this config asks for. Raises what such a run raises."""
    prepared = prepare(loaded.config, hooks)
    config = prepared.config
    first = config.training.model_copy(update={"stop_at_step": STEPS, "log_interval": 1})
    trainer = Trainer(config.model_copy(update={"training": first}), prepared.features, prepared.files, prepared.device)
    kept = Kept()
    try:
        with stop_on_signals() as stop:
            trainer.run(kept, stop, Hooks(on_step=hooks.on_step, log=hooks.log))
    finally:
        trainer.state.stream.close()
    facts = DataFacts(prepared.files[0][0].path)
    return Evidence(config, from_lines(kept.lines), facts, probe={"steps": float(STEPS)}, notes=list(prepared.notes))
